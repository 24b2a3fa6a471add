use crate::image_folder::MAX_EXTENT;
use crate::{Augment, Dataset, Error, Result};
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};

/// Checks every field of a preprocessing and augmentation against a data set.
pub(crate) fn validate(dataset: &Dataset, preprocessing: &Preprocessing, augment: &Augment) -> Result<()> {
    let check =
        |holds: bool, field: &'static str, expected: &dyn Fn() -> String, found: &dyn Fn() -> String| {
            let dataset = || dataset.name().to_owned();
            if holds {
                Ok(())
            } else {
                Err(Error::Preprocessing { dataset: dataset(), field, expected: expected(), found: found() })
            }
        };
    let [channels, height, width] = dataset.extents();
    let Preprocessing { scale, mean, std, channel_order, crop, resize, classes } = preprocessing;
    let planes = if *channel_order == ChannelOrder::Grey { 1 } else { 3 };
    check(
        planes == channels,
        "channel_order",
        &|| format!("an order of {channels} planes, as the images have"),
        &|| format!("{channel_order:?}"),
    )?;
    check(scale.is_finite(), "scale", &|| "a finite number".into(), &|| scale.to_string())?;
    let extents_fit =
        |size: [usize; 2]| size.iter().all(|&extent| extent > 0 && extent <= MAX_EXTENT as usize);
    check(resize.is_none_or(extents_fit), "resize", &|| format!("extents of 1 to {MAX_EXTENT}"), &|| {
        format!("{resize:?}")
    })?;
    let image = resize.unwrap_or([height, width]);
    check(
        crop.iter().zip(image).all(|(&crop, extent)| crop > 0 && crop <= extent),
        "crop",
        &|| format!("extents of 1 to {image:?} (the image's height and width)"),
        &|| format!("{crop:?}"),
    )?;
    check(
        crop.iter().all(|&crop| augment.padding < crop),
        "augment.padding",
        &|| format!("less than the crop's extents {crop:?}"),
        &|| augment.padding.to_string(),
    )?;
    check(
        std.is_empty() || std.len() == channels && std.iter().all(|std| std.is_finite() && *std > 0.0),
        "std",
        &|| format!("{channels} finite numbers above 0, or none"),
        &|| format!("{std:?}"),
    )?;
    check_mean(mean, channels, image, *crop, &check)?;
    check(
        classes.is_empty() || classes == dataset.classes(),
        "classes",
        &|| format!("the data set's, {:?}", dataset.classes()),
        &|| format!("{classes:?}"),
    )
}

type Check<'a> = &'a dyn Fn(bool, &'static str, &dyn Fn() -> String, &dyn Fn() -> String) -> Result<()>;

fn check_mean(
    mean: &Subtract,
    channels: usize,
    image: [usize; 2],
    crop: [usize; 2],
    check: Check<'_>,
) -> Result<()> {
    let (values, lens) = match mean {
        Subtract::Nothing => return Ok(()),
        Subtract::Channel(mean) => (mean, vec![channels]),
        Subtract::Pixel(mean) => (mean, [image, crop].map(|[h, w]| channels * h * w).to_vec()),
    };
    let expected = || match mean {
        Subtract::Pixel(_) => format!(
            "{channels} planes of {}x{} (the image) or {}x{} (the crop)",
            image[0], image[1], crop[0], crop[1]
        ),
        _ => format!("{channels} numbers, one a plane"),
    };
    check(lens.contains(&values.len()), "mean", &expected, &|| format!("{} numbers", values.len()))?;
    let bad = values.iter().position(|mean| !mean.is_finite());
    check(bad.is_none(), "mean", &|| "finite numbers".into(), &|| {
        bad.map_or_else(String::new, |i| format!("{} at element {i}", values[i]))
    })
}
