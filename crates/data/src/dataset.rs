use crate::{Error, Result};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Labelled images of equal extents, as bytes in memory. Clones and subsets share the bytes.
#[derive(Clone)]
pub struct Dataset {
    name: String,
    extents: [usize; 3],
    classes: Arc<[String]>,
    pixels: Arc<Vec<u8>>,
    labels: Arc<Vec<u32>>,
    range: Range<usize>,
    sha256: OnceLock<String>,
}

/// Training and test images of one task: same extents, same classes.
#[derive(Clone, Debug)]
pub struct Split {
    /// Images to learn from.
    pub train: Dataset,
    /// Images to judge by.
    pub test: Dataset,
}

impl Dataset {
    /// A data set of images `[channels, height, width]`, planar (all of one colour plane before the next), one after
    /// the other in `pixels`.
    ///
    /// # Errors
    /// If an extent is 0, there is no image or there are more than `u32::MAX`, `pixels` is not one image for each
    /// label, or a label has no class.
    pub fn new(
        name: impl Into<String>,
        extents: [usize; 3],
        classes: Vec<String>,
        pixels: Vec<u8>,
        labels: Vec<u32>,
    ) -> Result<Self> {
        let name = name.into();
        let wrong =
            |expected: String, found: String| Error::Dataset { dataset: name.clone(), expected, found };
        let image_len = extents.iter().try_fold(1usize, |len, &extent| len.checked_mul(extent));
        let expected_len = image_len.and_then(|len| len.checked_mul(labels.len()));
        if image_len == Some(0) || expected_len.is_none() {
            return Err(wrong("extents above 0 whose product fits in memory".into(), format!("{extents:?}")));
        }
        if labels.is_empty() || u32::try_from(labels.len()).is_err() {
            return Err(wrong(format!("1 to {} images", u32::MAX), labels.len().to_string()));
        }
        if expected_len != Some(pixels.len()) {
            let [c, h, w] = extents;
            let expected = format!("{} labels times {c}x{h}x{w} bytes of pixels", labels.len());
            return Err(wrong(expected, format!("{} bytes", pixels.len())));
        }
        if let Some(i) = labels.iter().position(|&label| label as usize >= classes.len()) {
            let expected = format!("labels below {} (the number of classes)", classes.len());
            return Err(wrong(expected, format!("{} at image {i}", labels[i])));
        }
        let range = 0..labels.len();
        let (pixels, labels) = (Arc::new(pixels), Arc::new(labels));
        Ok(Self { name, extents, classes: classes.into(), pixels, labels, range, sha256: OnceLock::new() })
    }

    /// Name of the data set, for example `mnist`; training and test images of a [`Split`] share it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same data set under another name; the hash does not change.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// `[channels, height, width]` of every image.
    #[must_use]
    pub fn extents(&self) -> [usize; 3] {
        self.extents
    }

    /// Number of images, at least 1 unless an empty [`Dataset::subset`] was taken.
    #[must_use]
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there is no image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// Names of the classes; a label indexes them.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Bytes of image `i`, planar `[channels, height, width]`.
    ///
    /// # Panics
    /// If `i` is not below [`Dataset::len`].
    #[must_use]
    pub fn image(&self, i: usize) -> &[u8] {
        assert!(i < self.len(), "image {i} of {}", self.len());
        let len = self.image_len();
        let start = (self.range.start + i) * len;
        &self.pixels[start..start + len]
    }

    /// Label of image `i`.
    ///
    /// # Panics
    /// If `i` is not below [`Dataset::len`].
    #[must_use]
    pub fn label(&self, i: usize) -> u32 {
        self.labels()[i]
    }

    /// All labels, in order.
    #[must_use]
    pub fn labels(&self) -> &[u32] {
        &self.labels[self.range.clone()]
    }

    /// All bytes, image after image.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        let len = self.image_len();
        &self.pixels[self.range.start * len..self.range.end * len]
    }

    /// The images of a range, sharing the bytes; the order stays.
    ///
    /// # Panics
    /// If the range does not lie within `0..len()`, as for a slice.
    #[must_use]
    pub fn subset(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "images {range:?} of {}", self.len());
        let start = self.range.start;
        Self { range: start + range.start..start + range.end, sha256: OnceLock::new(), ..self.clone() }
    }

    /// Images spread evenly over the data set, `count` or all if there are fewer; the order stays.
    #[must_use]
    pub fn spread(&self, count: usize) -> Self {
        let count = count.min(self.len());
        let chosen = || (0..count).map(|i| i * self.len() / count);
        Self {
            pixels: chosen().flat_map(|i| self.image(i)).copied().collect::<Vec<u8>>().into(),
            labels: chosen().map(|i| self.label(i)).collect::<Vec<u32>>().into(),
            range: 0..count,
            sha256: OnceLock::new(),
            ..self.clone()
        }
    }

    /// SHA-256, in hexadecimal, of extents, pixels and labels: the three extents and the number of images as 64-bit
    /// little-endian numbers, then the pixels, then each label as 32 bits little-endian. Names do not count. Computed
    /// once, at the first call.
    #[must_use]
    pub fn sha256(&self) -> &str {
        self.sha256.get_or_init(|| {
            let mut hash = Sha256::new();
            for number in self.extents.iter().chain([&self.len()]) {
                hash.update((*number as u64).to_le_bytes());
            }
            hash.update(self.pixels());
            for label in self.labels() {
                hash.update(label.to_le_bytes());
            }
            hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
        })
    }

    pub(crate) fn image_len(&self) -> usize {
        self.extents.iter().product()
    }
}

impl fmt::Debug for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataset")
            .field("name", &self.name)
            .field("extents", &self.extents)
            .field("len", &self.len())
            .field("classes", &self.classes.len())
            .finish_non_exhaustive()
    }
}
