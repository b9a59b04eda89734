//! `segvault snapshot create | list | show | retention | verify`.

mod create;
mod list;
mod retention;
mod show;
mod verify;

pub use create::create;
pub use list::list;
pub use retention::{RetentionArgs, retention};
pub use show::show;
pub use verify::{VerifyArgs, verify};
