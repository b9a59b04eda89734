//! Copies of what a truncation could take away: a few in memory, the rest in one file.
//!
//! The file has no name, so whatever happens to us its space is free again once we are gone.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::statvfs::fstatvfs;

use crate::pinned::{Copied, CopiedBytes};

/// Longest copy of a segment that stays in memory. Most tails have far less above the high watermark.
const MEMORY_SEGMENT_MAX: u64 = 1 << 20;
/// Bytes of all copies in memory; several agents may share a process.
const MEMORY_MAX: u64 = 16 << 20;
/// Bytes of all copies in the file. The high watermark is checkpointed every 5 s, so this is more than a broker
/// usually takes in meanwhile; without the limit a lost checkpoint would have us copy whole log dirs.
const FILE_MAX: u64 = 8 << 30;
/// What must stay free on the file's disk, as a part of what is free now.
const FREE_DIVISOR: u64 = 4;
/// Bytes copied at once.
const PIECE_LEN: usize = 256 << 10;

/// The copies of one capture.
#[derive(Debug)]
pub(crate) struct Spill {
    folder: PathBuf,
    memory_len: AtomicU64,
    file: Mutex<Option<SpillFile>>,
}

#[derive(Debug)]
struct SpillFile {
    file: Arc<File>,
    len: u64,
    len_max: u64,
}

impl Spill {
    /// Copies spill into `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, memory_len: AtomicU64::new(0), file: Mutex::new(None) }
    }

    /// Copies `[start, end)` of `source`. Fails with `UnexpectedEof` if it ends earlier, and with `StorageFull` if
    /// there are more bytes to copy than there may be.
    pub fn copy(&self, source: &File, start: u64, end: u64) -> io::Result<Copied> {
        let len = end - start;
        let is_small = len <= MEMORY_SEGMENT_MAX;
        let bytes = if is_small && self.memory_len.fetch_add(len, Ordering::Relaxed) + len <= MEMORY_MAX {
            let mut bytes = vec![0; len as usize];
            source.read_exact_at(&mut bytes, start)?;
            CopiedBytes::Memory(bytes)
        } else {
            let (file, position) = self.reserve(len)?;
            let mut piece = vec![0; PIECE_LEN.min(len as usize)];
            let mut done = 0;
            while done < len {
                let piece = &mut piece[..PIECE_LEN.min((len - done) as usize)];
                source.read_exact_at(piece, start + done)?;
                file.write_all_at(piece, position + done)?;
                done += piece.len() as u64;
            }
            CopiedBytes::Spilled { file, position }
        };
        Ok(Copied { start, bytes })
    }

    /// Room for `len` bytes in the file.
    fn reserve(&self, len: u64) -> io::Result<(Arc<File>, u64)> {
        let mut slot = self.file.lock().expect("no thread panics while it holds the lock");
        let spill = match &mut *slot {
            Some(spill) => spill,
            None => slot.insert(self.create()?),
        };
        if len > spill.len_max - spill.len {
            let reason = format!(
                "{} bytes above the checkpointed high watermarks would have to be copied to {}, and only {} may be",
                spill.len + len,
                self.folder.display(),
                spill.len_max
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, reason));
        }
        let position = spill.len;
        spill.len += len;
        Ok((spill.file.clone(), position))
    }

    fn create(&self) -> io::Result<SpillFile> {
        let path = self.folder.join("copies");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        let disk = fstatvfs(&file)?;
        let free = disk.blocks_available() * disk.fragment_size();
        Ok(SpillFile { file: Arc::new(file), len: 0, len_max: FILE_MAX.min(free / FREE_DIVISOR) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_copies_go_to_a_file_without_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("source");
        let bytes: Vec<u8> = (0..3 * MEMORY_SEGMENT_MAX as u32).map(|i| (i % 251) as u8).collect();
        fs::write(&path, &bytes).unwrap();
        let source = File::open(&path).unwrap();
        let spill = Spill::new(folder.path().into());
        for (start, end) in [(0, 10), (100, 2 * MEMORY_SEGMENT_MAX + 7), (5, 3 * MEMORY_SEGMENT_MAX)] {
            let copied = spill.copy(&source, start, end).unwrap();
            assert_eq!(matches!(copied.bytes, CopiedBytes::Memory(_)), end - start <= MEMORY_SEGMENT_MAX);
            let mut read = vec![0; (end - start) as usize];
            copied.read_exact_at(&mut read, 0).unwrap();
            assert!(read == bytes[start as usize..end as usize]);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the source has a name");
        let too_far = spill.copy(&source, 0, bytes.len() as u64 + 1).unwrap_err();
        assert_eq!(too_far.kind(), io::ErrorKind::UnexpectedEof);
    }
}
