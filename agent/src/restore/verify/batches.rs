//! The batches of a log file, one by one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use segvault_kafka_log::batch::{Batch, BatchError, LOG_OVERHEAD};

/// Bytes of a log that are read at once, if no batch is longer.
const READ_LEN: usize = 1 << 20;

/// Reads a log from byte `from` on, where a batch begins, to its end; `take` gets each batch and where it begins.
pub(super) fn for_each_batch(
    log: &Path,
    from: u64,
    mut take: impl FnMut(u64, &Batch<'_>) -> Result<(), String>,
) -> Result<(), String> {
    let file = File::open(log).map_err(|error| error.to_string())?;
    let len = file.metadata().map_err(|error| error.to_string())?.len();
    let (mut position, mut buffer) = (from, Vec::new());
    let mut wanted = READ_LEN;
    while position < len {
        let at = |position: u64, why: &dyn std::fmt::Display| format!("at byte {position}: {why}");
        buffer.resize(usize::try_from(len - position).unwrap_or(wanted).min(wanted), 0);
        file.read_exact_at(&mut buffer, position).map_err(|error| at(position, &error))?;
        let mut used = 0;
        wanted = READ_LEN;
        while used + LOG_OVERHEAD <= buffer.len() {
            let here = position + used as u64;
            match Batch::parse(&buffer[used..]) {
                Ok(batch) => {
                    take(here, &batch).map_err(|why| at(here, &why))?;
                    used += batch.size();
                }
                Err(BatchError::Truncated { needed }) if here + needed as u64 <= len => {
                    wanted = needed.max(READ_LEN);
                    break;
                }
                Err(error) => return Err(at(here, &error)),
            }
        }
        if used == 0 && buffer.len() as u64 == len - position {
            return Err(at(position, &"the batch is cut short"));
        }
        position += used as u64;
    }
    Ok(())
}
