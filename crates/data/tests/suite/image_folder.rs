use crate::files::{assert_says, pattern, write};
use cofilter_data::{Colour, Filter, image_folder};
use flate2::Crc;
use image::{GrayImage, ImageFormat, Rgb, RgbImage, RgbaImage};
use std::fs;
use std::path::Path;
use tempfile::tempdir;

fn rgb(width: u32, height: u32) -> RgbImage {
    RgbImage::from_raw(width, height, pattern((3 * width * height) as usize)).unwrap()
}

fn grey(width: u32, height: u32) -> GrayImage {
    GrayImage::from_raw(width, height, pattern((width * height) as usize)).unwrap()
}

fn class(folder: &Path, name: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn classes_and_files_are_sorted_by_name() {
    let folder = tempdir().unwrap();
    for (name, file, shade) in [
        ("zebra", "a.png", 1),
        ("ant", "b.png", 2),
        ("ant", "a.PNG", 3),
        ("ant", "10.png", 4),
        ("Bee", "x.jpeg", 5),
    ] {
        RgbImage::from_pixel(4, 4, Rgb([shade; 3])).save(class(folder.path(), name).join(file)).unwrap();
    }
    write(folder.path(), "readme.txt", b"beside the classes");
    write(&class(folder.path(), "ant"), "notes.txt", b"no image");
    write(&class(folder.path(), "ant"), ".hidden.png", b"no image");
    class(folder.path(), ".cache");
    class(folder.path(), "ant/deeper.png");
    let dataset = image_folder(folder.path(), [4, 4], Colour::Grey, Filter::Bilinear).unwrap();
    assert_eq!(dataset.classes(), ["Bee", "ant", "zebra"]);
    assert_eq!(dataset.labels(), [0, 1, 1, 1, 2]);
    let shades: Vec<u8> = (0..5).map(|i| dataset.image(i)[0]).collect();
    assert_eq!(shades, [5, 4, 3, 2, 1]);
    assert_eq!(dataset.name(), folder.path().file_name().unwrap().to_str().unwrap());
}

#[test]
fn planes_are_separated() {
    let folder = tempdir().unwrap();
    let image = rgb(5, 3);
    image.save(class(folder.path(), "a").join("a.png")).unwrap();
    let dataset = image_folder(folder.path(), [3, 5], Colour::Rgb, Filter::Bilinear).unwrap();
    assert_eq!(dataset.extents(), [3, 3, 5]);
    for (x, y, pixel) in image.enumerate_pixels() {
        for c in 0..3 {
            assert_eq!(dataset.image(0)[(c * 3 + y as usize) * 5 + x as usize], pixel.0[c]);
        }
    }
}

#[test]
fn colour_becomes_grey_and_grey_colour() {
    let folder = tempdir().unwrap();
    let (coloured, plain) = (rgb(6, 4), grey(6, 4));
    let a = class(folder.path(), "a");
    coloured.save(a.join("colour.png")).unwrap();
    plain.save(a.join("grey.png")).unwrap();
    let see_through = RgbaImage::from_fn(6, 4, |x, y| {
        let Rgb([r, g, b]) = *coloured.get_pixel(x, y);
        image::Rgba([r, g, b, (x * 40) as u8])
    });
    see_through.save(a.join("transparent.png")).unwrap();

    let dataset = image_folder(folder.path(), [4, 6], Colour::Rgb, Filter::Nearest).unwrap();
    assert_eq!(
        dataset.image(1),
        [plain.as_raw().clone(), plain.as_raw().clone(), plain.as_raw().clone()].concat()
    );
    assert_eq!(dataset.image(2), dataset.image(0));

    let dataset = image_folder(folder.path(), [4, 6], Colour::Grey, Filter::Nearest).unwrap();
    assert_eq!(dataset.image(1), plain.as_raw());
    for (found, Rgb([r, g, b])) in dataset.image(0).iter().zip(coloured.pixels()) {
        let luma = 0.2126 * f64::from(*r) + 0.7152 * f64::from(*g) + 0.0722 * f64::from(*b);
        assert!((f64::from(*found) - luma).abs() <= 1.0, "{found} {luma}");
    }
}

#[test]
fn images_are_stretched_to_the_size() {
    let folder = tempdir().unwrap();
    // Four quarters of one shade each.
    let shade = |x: u32, y: u32| (60 * (x / 20) + 120 * (y / 10)) as u8;
    let quarters = GrayImage::from_fn(40, 20, |x, y| image::Luma([shade(x, y)]));
    quarters.save_with_format(class(folder.path(), "a").join("a.png"), ImageFormat::Png).unwrap();
    for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
        let dataset = image_folder(folder.path(), [8, 4], Colour::Grey, filter).unwrap();
        assert_eq!(dataset.extents(), [1, 8, 4]);
        let at = |y: usize, x: usize| dataset.image(0)[y * 4 + x];
        for (found, expected) in [at(0, 0), at(0, 3), at(7, 0), at(7, 3)].into_iter().zip([0u8, 60, 120, 180])
        {
            // A cubic kernel overshoots a little.
            assert!(found.abs_diff(expected) <= 2, "{filter:?}: {found} {expected}");
        }
    }
    let of = |filter| image_folder(folder.path(), [7, 3], Colour::Grey, filter).unwrap().image(0).to_vec();
    assert_ne!(of(Filter::Nearest), of(Filter::Bilinear));
    assert_ne!(of(Filter::Bicubic), of(Filter::Bilinear));
}

#[test]
fn jpeg_is_read() {
    let folder = tempdir().unwrap();
    let smooth = RgbImage::from_fn(32, 24, |x, y| Rgb([(x * 7) as u8, (y * 9) as u8, (x + y) as u8]));
    smooth.save(class(folder.path(), "a").join("a.jpg")).unwrap();
    let dataset = image_folder(folder.path(), [24, 32], Colour::Rgb, Filter::Bilinear).unwrap();
    let difference = smooth.enumerate_pixels().map(|(x, y, pixel)| {
        let at = |c: usize| f64::from(dataset.image(0)[(c * 24 + y as usize) * 32 + x as usize]);
        (0..3).map(|c| (at(c) - f64::from(pixel.0[c])).abs()).sum::<f64>() / 3.0
    });
    assert!(difference.sum::<f64>() / (32.0 * 24.0) < 6.0);
}

/// One class with one good file and one with these bytes, and an error that names it and says each part.
#[track_caller]
fn refuses(file: &str, bytes: &[u8], parts: &[&str]) {
    let folder = tempdir().unwrap();
    let a = class(folder.path(), "a");
    grey(4, 4).save(a.join("good.png")).unwrap();
    write(&a, file, bytes);
    let result = image_folder(folder.path(), [4, 4], Colour::Grey, Filter::Bilinear);
    assert_says(result, &[&[file, "expected a JPEG or PNG image, found"], parts].concat());
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    rgb(64, 64).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

#[test]
fn broken_images_are_refused() {
    refuses("text.png", b"this is no image", &[]);
    refuses("empty.jpg", b"", &[]);
    for (file, bytes) in [("cut.png", encoded(ImageFormat::Png)), ("cut.jpg", encoded(ImageFormat::Jpeg))] {
        for len in [8, bytes.len() / 4, bytes.len() / 2] {
            refuses(file, &bytes[..len], &[]);
        }
    }
    // The last byte of a JPEG belongs to the marker of its end.
    let whole = encoded(ImageFormat::Jpeg);
    refuses("cut.jpg", &whole[..whole.len() - 1], &["the end of the file before the end of the image"]);
    let mut damaged = encoded(ImageFormat::Png);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    refuses("damaged.png", &damaged, &[]);
}

/// A PNG header that promises `width` x `height` pixels of 8-bit colour, and a few bytes of them.
fn promise(width: u32, height: u32) -> Vec<u8> {
    let chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        let mut crc = Crc::new();
        crc.update(&body);
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc.sum().to_be_bytes()].concat()
    };
    let extents = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = chunk(b"IHDR", &[&extents[..], &[8, 2, 0, 0, 0]].concat());
    [&b"\x89PNG\r\n\x1a\n"[..], &header, &chunk(b"IDAT", &[0x78, 0x9c, 0, 0, 0])].concat()
}

#[test]
fn promises_of_giant_images_are_refused() {
    refuses("wide.png", &promise(60_000, 10), &["limit"]);
    refuses("high.png", &promise(10, 60_000), &["limit"]);
    refuses("giant.png", &promise(16_384, 16_384), &["limit"]);
}

#[test]
fn empty_folders_and_sizes_are_refused() {
    let folder = tempdir().unwrap();
    let read = |size| image_folder(folder.path(), size, Colour::Rgb, Filter::Bilinear);
    assert_says(read([4, 4]), &["expected folders of images, one a class", "no folder"]);
    class(folder.path(), "empty");
    assert_says(read([4, 4]), &["empty", "at least one .jpg, .jpeg or .png file", "none"]);
    grey(4, 4).save(folder.path().join("empty/a.png")).unwrap();
    assert_says(read([0, 4]), &["1 to 16384", "0x4"]);
    assert_says(read([4, 20_000]), &["1 to 16384", "4x20000"]);
    read([4, 4]).unwrap();
    let missing = image_folder(&folder.path().join("nowhere"), [4, 4], Colour::Rgb, Filter::Bilinear);
    assert_says(missing, &["nowhere", "No such file"]);
}
