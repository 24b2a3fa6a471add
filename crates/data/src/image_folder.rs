use crate::{Dataset, Error, Result, jpeg};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder as _, ImageReader, Limits};
use std::fs;
use std::io::{self, BufRead, Cursor, Seek};
use std::path::{Path, PathBuf};

const EXTENSIONS: [&str; 3] = ["jpg", "jpeg", "png"];
/// Height and width a header may promise.
pub(crate) const MAX_EXTENT: u32 = 16_384;
/// Memory the decoder may take for one image.
const MAX_IMAGE_BYTES: u64 = 1 << 29;

/// Colour planes of images read from a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// One plane: `0.2126 R + 0.7152 G + 0.0722 B` of a coloured image.
    Grey,
    /// Three planes, red first; a grey image three times the same.
    Rgb,
}

/// How an image is resized. All but the first widen with the factor when they shrink, so that no pixel is passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// Triangle kernel.
    Bilinear,
    /// Cubic kernel of Catmull and Rom.
    Bicubic,
}

impl Filter {
    pub(crate) fn kind(self) -> FilterType {
        match self {
            Self::Nearest => FilterType::Nearest,
            Self::Bilinear => FilterType::Triangle,
            Self::Bicubic => FilterType::CatmullRom,
        }
    }
}

/// Reads a folder of class folders with JPEG and PNG files. Classes are the folders sorted by name, images are sorted
/// by name within their class; names that start with a dot, other kinds of files and deeper folders are passed over.
/// Each image is stretched to `size` `[height, width]` (transparency and EXIF orientation are ignored, 16-bit samples
/// become 8-bit) and all are kept in memory: `channels * height * width` bytes each.
///
/// # Errors
/// If `size` has a 0 or an extent above 16,384, there is no class folder, a class has no image, or an image cannot be
/// decoded or is larger than 16,384 pixels in a direction or 512 MiB in memory.
pub fn image_folder(folder: &Path, size: [usize; 2], colour: Colour, filter: Filter) -> Result<Dataset> {
    let listing = Listing::read(folder)?;
    let name = folder.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
    listing.load(&name, size, colour, filter)
}

/// Reads one JPEG or PNG file as a data set of one image of class 0, stretched to `size` `[height, width]`, as [`image_folder`] does.
///
/// # Errors
/// As [`image_folder`].
pub fn image(path: &Path, size: [usize; 2], colour: Colour, filter: Filter) -> Result<Dataset> {
    let name = path.display().to_string();
    let listing = Listing {
        folder: path.to_owned(),
        classes: vec!["unknown".into()],
        files: vec![(path.to_owned(), 0)],
    };
    listing.load(&name, size, colour, filter)
}

/// Class folders and their files, before any image is decoded.
pub(crate) struct Listing {
    folder: PathBuf,
    pub(crate) classes: Vec<String>,
    files: Vec<(PathBuf, u32)>,
}

impl Listing {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let (mut classes, mut files) = (Vec::new(), Vec::new());
        for (class, path) in entries(folder)? {
            if !path.is_dir() {
                continue;
            }
            let label = classes.len() as u32;
            let before = files.len();
            let images = entries(&path)?.into_iter().filter(|(_, file)| is_image(file));
            files.extend(images.map(|(_, file)| (file, label)));
            if files.len() == before {
                return Err(Error::format(&path, "at least one .jpg, .jpeg or .png file", "none"));
            }
            classes.push(class);
        }
        if classes.is_empty() {
            return Err(Error::format(folder, "folders of images, one a class", "no folder"));
        }
        Ok(Self { folder: folder.to_owned(), classes, files })
    }

    /// Extents `[height, width]` that all images share and whether any has colour, from the headers alone.
    pub(crate) fn survey(&self) -> Result<([usize; 2], Colour)> {
        let mut shared: Option<([usize; 2], &Path)> = None;
        let mut colour = Colour::Grey;
        for (path, _) in &self.files {
            let reader =
                ImageReader::open(path).and_then(limited).map_err(|source| Error::io(path, source))?;
            let decoder = reader.into_decoder().map_err(|source| failed(path, source))?;
            let (width, height) = decoder.dimensions();
            let size = [height as usize, width as usize];
            if decoder.color_type().has_color() {
                colour = Colour::Rgb;
            }
            match shared {
                Some((first, first_path)) if first != size => {
                    let expected = format!("{}x{} as in {}", first[0], first[1], first_path.display());
                    let found =
                        format!("{height}x{width}; images of several sizes need a size to resize them to");
                    return Err(Error::format(path, expected, found));
                }
                _ => shared = Some((size, shared.map_or(path, |(_, first)| first))),
            }
        }
        let (size, _) = shared.expect("a listing has at least one file a class and at least one class");
        Ok((size, colour))
    }

    pub(crate) fn load(
        self,
        name: &str,
        size: [usize; 2],
        colour: Colour,
        filter: Filter,
    ) -> Result<Dataset> {
        let [height, width] = size;
        if size.iter().any(|&extent| extent == 0 || extent > MAX_EXTENT as usize) {
            let expected = format!("a size of 1 to {MAX_EXTENT} pixels in each direction");
            return Err(Error::format(&self.folder, expected, format!("{height}x{width}")));
        }
        let channels = if colour == Colour::Grey { 1 } else { 3 };
        let image_len = channels * height * width;
        let mut pixels = Vec::new();
        let len = image_len.checked_mul(self.files.len());
        if len.is_none_or(|len| pixels.try_reserve_exact(len).is_err()) {
            let expected = format!("memory for {} images of {image_len} bytes", self.files.len());
            return Err(Error::format(&self.folder, expected, "too little"));
        }
        for (path, _) in &self.files {
            let image = decode(path)?;
            append(&mut pixels, image, size, colour, filter);
        }
        let labels = self.files.iter().map(|(_, label)| *label).collect();
        Dataset::new(name, [channels, height, width], self.classes, pixels, labels)
    }
}

/// Converts, resizes and appends an image plane by plane.
fn append(
    pixels: &mut Vec<u8>,
    image: DynamicImage,
    [height, width]: [usize; 2],
    colour: Colour,
    filter: Filter,
) {
    let image = match colour {
        Colour::Grey => DynamicImage::from(image.into_luma8()),
        Colour::Rgb => DynamicImage::from(image.into_rgb8()),
    };
    let (width, height) = (width as u32, height as u32);
    let image = if (image.width(), image.height()) == (width, height) {
        image
    } else {
        image.resize_exact(width, height, filter.kind())
    };
    let channels = if colour == Colour::Grey { 1 } else { 3 };
    for channel in 0..channels {
        pixels.extend(image.as_bytes().iter().skip(channel).step_by(channels));
    }
}

/// A whole image from a file.
fn decode(path: &Path) -> Result<DynamicImage> {
    let io = |source| Error::io(path, source);
    let len_bytes = fs::metadata(path).map_err(io)?.len();
    if len_bytes > MAX_IMAGE_BYTES {
        return Err(Error::format(path, format!("at most {MAX_IMAGE_BYTES} bytes"), len_bytes.to_string()));
    }
    let bytes = fs::read(path).map_err(io)?;
    if !jpeg::is_complete(&bytes) {
        let expected = "a JPEG or PNG image";
        return Err(Error::format(path, expected, "the end of the file before the end of the image"));
    }
    let reader = limited(ImageReader::new(Cursor::new(bytes))).map_err(io)?;
    reader.decode().map_err(|source| failed(path, source))
}

/// A reader that knows the format from the content, whatever the file is called, and its limits.
fn limited<R: BufRead + Seek>(reader: ImageReader<R>) -> io::Result<ImageReader<R>> {
    let mut reader = reader.with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_EXTENT);
    limits.max_image_height = Some(MAX_EXTENT);
    limits.max_alloc = Some(MAX_IMAGE_BYTES);
    reader.limits(limits);
    Ok(reader)
}

fn failed(path: &Path, source: image::ImageError) -> Error {
    Error::Image { path: path.to_owned(), source }
}

/// Names and paths in a folder, without hidden ones, sorted by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let failed = |source| Error::io(folder, source);
    let mut entries = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| Error::format(&folder.join(name), "a name in UTF-8", "other bytes"))?;
        if !name.starts_with('.') {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

fn is_image(path: &Path) -> bool {
    let known = |extension: &str| EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    path.extension().and_then(|extension| extension.to_str()).is_some_and(known) && path.is_file()
}
