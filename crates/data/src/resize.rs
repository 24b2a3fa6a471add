use crate::{Dataset, Error, Filter, Result};
use image::GrayImage;
use image::imageops;
use std::borrow::Cow;

/// The data set with every image stretched to `[height, width]`, or itself if they have those extents.
pub(crate) fn resize(dataset: &Dataset, size: [usize; 2]) -> Result<Cow<'_, Dataset>> {
    let [channels, height, width] = dataset.extents();
    if size == [height, width] {
        return Ok(Cow::Borrowed(dataset));
    }
    let mut pixels = Vec::new();
    let len = dataset.len().checked_mul(channels * size[0] * size[1]);
    if len.is_none_or(|len| pixels.try_reserve_exact(len).is_err()) {
        return Err(Error::Preprocessing {
            dataset: dataset.name().to_owned(),
            field: "resize",
            expected: format!("a size at which {} images fit in memory", dataset.len()),
            found: format!("{size:?}"),
        });
    }
    for plane in dataset.pixels().chunks_exact(height * width) {
        let plane = GrayImage::from_raw(width as u32, height as u32, plane.to_vec())
            .expect("a plane has height times width bytes");
        let resized = imageops::resize(&plane, size[1] as u32, size[0] as u32, Filter::Bilinear.kind());
        pixels.extend_from_slice(resized.as_raw());
    }
    let extents = [channels, size[0], size[1]];
    Dataset::new(dataset.name(), extents, dataset.classes().to_vec(), pixels, dataset.labels().to_vec())
        .map(Cow::Owned)
}
