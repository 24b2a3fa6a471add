use crate::{Error, Result};
use flate2::read::MultiGzDecoder;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// The most a header may promise, however large the file: sixteen times CIFAR-10's training images are fewer.
const MAX_BODY_LEN_BYTES: u128 = 1 << 30;
/// Deflate cannot shrink further than 258 bytes to two bits.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// A file read front to back, unpacked when its name ends in `.gz`. Nothing is allocated on the word of a header that
/// the file is too short to keep.
pub(crate) struct Source {
    path: PathBuf,
    reader: Box<dyn Read>,
    packed: bool,
    /// Upper bound of what is left to read.
    left: u64,
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::io(path, source);
        let metadata = fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::format(path, "a file", "something else"));
        }
        let file = BufReader::new(File::open(path).map_err(failed)?);
        let packed = path.extension().is_some_and(|extension| extension == "gz");
        let (reader, left): (Box<dyn Read>, u64) = if packed {
            (Box::new(MultiGzDecoder::new(file)), metadata.len().saturating_mul(MAX_DEFLATE_RATIO))
        } else {
            (Box::new(file), metadata.len())
        };
        Ok(Self { path: path.to_owned(), reader, packed, left })
    }

    /// The next `N` bytes.
    pub(crate) fn header<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.read(N as u128, "the header")?;
        Ok(bytes.try_into().expect("read returns as many bytes as asked for"))
    }

    /// The next `len` bytes, which must be the last. `what` names them in messages.
    pub(crate) fn body(mut self, len: u128, what: &str) -> Result<Vec<u8>> {
        let bytes = self.read(len, what)?;
        let mut one = [0];
        match self.reader.read(&mut one) {
            Ok(0) => Ok(bytes),
            Ok(_) => {
                Err(self.wrong(format!("the end of the file after {len} bytes of {what}"), "more bytes"))
            }
            Err(error) => Err(self.broken(&error)),
        }
    }

    pub(crate) fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::format(&self.path, expected, found)
    }

    fn read(&mut self, len: u128, what: &str) -> Result<Vec<u8>> {
        if len > MAX_BODY_LEN_BYTES {
            return Err(self.wrong(
                format!("at most {MAX_BODY_LEN_BYTES} bytes of {what}"),
                format!("a promise of {len}"),
            ));
        }
        if len > u128::from(self.left) {
            let kind = if self.packed { "a gzip file that cannot unpack to more than" } else { "only" };
            return Err(self.wrong(format!("{len} bytes of {what}"), format!("{kind} {}", self.left)));
        }
        let len = len as u64;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(len as usize).is_err() {
            return Err(self.wrong(format!("memory for {len} bytes of {what}"), "too little"));
        }
        // The length check above bounds a plain file; a gzip stream may still end early.
        match self.reader.by_ref().take(len).read_to_end(&mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(self.broken(&error)),
            _ if (bytes.len() as u64) < len => {
                Err(self.wrong(format!("{len} bytes of {what}"), format!("the end after {}", bytes.len())))
            }
            _ => {
                self.left -= len;
                Ok(bytes)
            }
        }
    }

    fn broken(&self, error: &io::Error) -> Error {
        let expected = if self.packed { "an intact gzip stream" } else { "a readable file" };
        self.wrong(expected, error.to_string())
    }
}
