//! Every decision: the cut, the sources, the restore plan, retention: pure.

pub mod events;
pub mod line;
pub mod maximal_line;
pub mod restore;
pub mod retention;
pub mod sample;
pub mod source;
