use crate::resize::resize;
use crate::stream::{below, stream};
use crate::validate::validate;
use crate::{Augment, Dataset, Error, Result};
use cofilter_graph::{ChannelOrder, Preprocessing, Subtract};
use rand::Rng as _;
use std::borrow::Cow;

/// Turns images of a data set into a network's input: `x = (byte * scale - mean) / std` (paper, 7).
///
/// Resizing (with [`crate::Filter::Bilinear`], once, at construction) comes first, then zero padding, crop, mean and
/// deviation, mirroring. Padding is raw zero bytes, before the mean is subtracted (paper, 7.3). Means and deviations
/// are in the order of the network's planes (blue first for [`ChannelOrder::Bgr`]).
///
/// A mean image of the image's extents is subtracted where the crop lies; of the padding it knows nothing but that
/// every padded image is zero there, so that it is zero as well: exactly the mean image of the padded data set, and
/// padded pixels become 0. A mean image of the crop's extents, where that is smaller than the image, moves with the
/// crop.
#[derive(Clone, Debug)]
pub struct Pipeline {
    dataset: Dataset,
    /// Plane of the image that each plane of the input takes.
    planes: Vec<usize>,
    subtract: Table,
    crop: [usize; 2],
    augment: Augment,
    seed: u64,
}

/// What becomes of a byte.
#[derive(Clone, Debug)]
enum Table {
    /// By plane: the finished value of each byte.
    Channel(Vec<[f32; 256]>),
    /// The scaled value of each byte; a mean image, whose rows have `width` elements; and deviations, maybe none.
    Pixel { scaled: Box<[f32; 256]>, mean: Vec<f32>, size: [usize; 2], follows_image: bool, std: Vec<f32> },
}

/// Where a crop lies in the image (negative: in the padding), and whether it is mirrored.
#[derive(Clone, Copy)]
struct Draw {
    top: isize,
    left: isize,
    mirror: bool,
}

impl Pipeline {
    /// A pipeline from images of `dataset`. `seed` and the iteration determine the augmentation.
    ///
    /// # Errors
    /// If the preprocessing does not fit the data set: planes, extents of crop and mean, number of means and
    /// deviations, class names (an empty list fits every data set); or a number in it is not finite, a deviation not
    /// above 0, or the padding not below the crop's extents.
    pub fn new(
        dataset: &Dataset,
        preprocessing: &Preprocessing,
        augment: &Augment,
        seed: u64,
    ) -> Result<Self> {
        validate(dataset, preprocessing, augment)?;
        let dataset = match preprocessing.resize {
            Some(size) => resize(dataset, size)?,
            None => Cow::Borrowed(dataset),
        };
        let [channels, height, width] = dataset.extents();
        let planes = match preprocessing.channel_order {
            ChannelOrder::Grey | ChannelOrder::Rgb => (0..channels).collect(),
            ChannelOrder::Bgr => (0..channels).rev().collect(),
        };
        let scaled: [f32; 256] = std::array::from_fn(|byte| byte as f32 * preprocessing.scale);
        let std = &preprocessing.std;
        let by_channel = |mean: &dyn Fn(usize) -> f32| {
            let finish = |plane: usize| scaled.map(|x| divide(x - mean(plane), std.get(plane)));
            Table::Channel((0..channels).map(finish).collect())
        };
        let crop = preprocessing.crop;
        let subtract = match &preprocessing.mean {
            Subtract::Nothing => by_channel(&|_| 0.0),
            Subtract::Channel(mean) => by_channel(&|plane| mean[plane]),
            Subtract::Pixel(mean) => {
                let follows_image = mean.len() == channels * height * width;
                let size = if follows_image { [height, width] } else { crop };
                Table::Pixel {
                    scaled: Box::new(scaled),
                    mean: mean.clone(),
                    size,
                    follows_image,
                    std: std.clone(),
                }
            }
        };
        Ok(Self { dataset: dataset.into_owned(), planes, subtract, crop, augment: *augment, seed })
    }

    /// `[channels, height, width]` of an input.
    #[must_use]
    pub fn input_extents(&self) -> [usize; 3] {
        [self.planes.len(), self.crop[0], self.crop[1]]
    }

    /// Number of elements of an input.
    #[must_use]
    pub fn input_len(&self) -> usize {
        self.input_extents().iter().product()
    }

    /// Inputs of all images, `[n, channels, height, width]`, without augmentation; of some of them with [`Dataset::spread`] before.
    ///
    /// # Errors
    /// None for a pipeline that was made.
    pub fn all(&self) -> Result<Vec<f32>> {
        let count = self.dataset.len();
        #[expect(clippy::cast_possible_truncation, reason = "data sets are far smaller than 2^32")]
        let indices: Vec<u32> = (0..count as u32).collect();
        let mut inputs = vec![0.0; count * self.input_len()];
        self.fill(None, &indices, &mut inputs, &mut vec![0; count])?;
        Ok(inputs)
    }

    /// Fills `dst` `[indices.len(), channels, height, width]` and `labels` with the images `indices`.
    ///
    /// With an iteration: a random crop of the padded image, mirrored or not, each drawn from (seed, iteration,
    /// position in `indices`) alone. Where the padded image is as large as the crop there is nothing to draw. Without:
    /// the centre of the image as it is (offset rounded down, as Caffe does), whatever the augmentation.
    ///
    /// # Errors
    /// If `dst` or `labels` have another length than that, or an index is not below the number of images.
    pub fn fill(
        &self,
        iteration: Option<u64>,
        indices: &[u32],
        dst: &mut [f32],
        labels: &mut [u32],
    ) -> Result<()> {
        self.check(indices, dst.len(), labels.len())?;
        let mut draws = self.draws(iteration);
        let inputs = dst.chunks_exact_mut(self.input_len());
        for ((input, label), &index) in inputs.zip(labels).zip(indices) {
            *label = self.dataset.label(index as usize);
            self.fill_image(self.dataset.image(index as usize), draws(), input);
        }
        Ok(())
    }

    fn check(&self, indices: &[u32], dst: usize, labels: usize) -> Result<()> {
        let wrong = |expected: String, found: String| {
            Err(Error::Batch { dataset: self.dataset.name().to_owned(), expected, found })
        };
        let (images, len) = (indices.len(), self.input_len());
        if dst != images * len {
            return wrong(format!("{images} inputs of {len} elements"), format!("room for {dst} elements"));
        }
        if labels != images {
            return wrong(format!("{images} labels"), format!("room for {labels}"));
        }
        match indices.iter().find(|&&index| index as usize >= self.dataset.len()) {
            Some(index) => wrong(format!("image indices below {}", self.dataset.len()), index.to_string()),
            None => Ok(()),
        }
    }

    /// The draws of a batch, position after position. Each takes three words of the iteration's stream.
    fn draws(&self, iteration: Option<u64>) -> impl FnMut() -> Draw + use<> {
        let [_, height, width] = self.dataset.extents();
        let [crop_height, crop_width] = self.crop;
        let Augment { padding, mirror } = self.augment;
        let (rows, cols) = (height - crop_height, width - crop_width);
        let random = padding > 0 || mirror || rows > 0 || cols > 0;
        let mut rng =
            iteration.filter(|_| random).map(|number| stream(b"cofilter-augment", self.seed, number));
        move || match &mut rng {
            None => Draw { top: (rows / 2) as isize, left: (cols / 2) as isize, mirror: false },
            Some(rng) => {
                let mut offset =
                    |free: usize| below(rng.next_u32(), free + 2 * padding + 1) as isize - padding as isize;
                let (top, left) = (offset(rows), offset(cols));
                Draw { top, left, mirror: rng.next_u32() >> 31 == 1 && mirror }
            }
        }
    }

    fn fill_image(&self, image: &[u8], draw: Draw, input: &mut [f32]) {
        let [_, height, width] = self.dataset.extents();
        let [crop_height, crop_width] = self.crop;
        let cols = Overlap::new(draw.left, crop_width, width);
        let whole_rows = cols.inside == width && draw.top >= 0 && draw.top as usize + crop_height <= height;
        for (plane, dst) in input.chunks_exact_mut(crop_height * crop_width).enumerate() {
            let src = &image[self.planes[plane] * height * width..][..height * width];
            if let (true, Table::Channel(tables)) =
                (whole_rows && cols.before + cols.after == 0, &self.subtract)
            {
                let src = &src[draw.top as usize * width..][..crop_height * width];
                look_up(&tables[plane], src, dst);
            } else {
                for (y, row) in dst.chunks_exact_mut(crop_width).enumerate() {
                    let at = usize::try_from(draw.top + y as isize).ok().filter(|&at| at < height);
                    self.fill_row(plane, at.map(|at| (at, &src[at * width..][..width])), y, cols, row);
                }
            }
            if draw.mirror {
                dst.chunks_exact_mut(crop_width).for_each(<[f32]>::reverse);
            }
        }
    }

    /// Fills row `y` of a crop from a row of the image and its number, or from none where it lies in the padding.
    fn fill_row(&self, plane: usize, src: Option<(usize, &[u8])>, y: usize, cols: Overlap, dst: &mut [f32]) {
        let (before, rest) = dst.split_at_mut(if src.is_some() { cols.before } else { 0 });
        let (inside, after) = rest.split_at_mut(if src.is_some() { cols.inside } else { 0 });
        match &self.subtract {
            Table::Channel(tables) => {
                before.fill(tables[plane][0]);
                after.fill(tables[plane][0]);
                if let Some((_, src)) = src {
                    look_up(&tables[plane], &src[cols.start..][..inside.len()], inside);
                }
            }
            Table::Pixel { scaled, mean, size, follows_image: true, std } => {
                before.fill(0.0);
                after.fill(0.0);
                if let Some((at, src)) = src {
                    let mean = &mean[(plane * size[0] + at) * size[1] + cols.start..][..inside.len()];
                    subtract(scaled, &src[cols.start..][..inside.len()], mean, std.get(plane), inside);
                }
            }
            Table::Pixel { scaled, mean, size, follows_image: false, std } => {
                let mean = &mean[(plane * size[0] + y) * size[1]..][..size[1]];
                let (mean_before, mean_rest) = mean.split_at(before.len());
                let (mean_inside, mean_after) = mean_rest.split_at(inside.len());
                for (dst, mean) in before.iter_mut().zip(mean_before).chain(after.iter_mut().zip(mean_after))
                {
                    *dst = divide(scaled[0] - mean, std.get(plane));
                }
                if let Some((_, src)) = src {
                    subtract(scaled, &src[cols.start..][..inside.len()], mean_inside, std.get(plane), inside);
                }
            }
        }
    }
}

/// How the columns of a crop lie on those of an image: padding, image from column `start`, padding.
#[derive(Clone, Copy)]
struct Overlap {
    before: usize,
    inside: usize,
    after: usize,
    start: usize,
}

impl Overlap {
    fn new(offset: isize, crop: usize, extent: usize) -> Self {
        let before = offset.min(0).unsigned_abs();
        let start = offset.max(0) as usize;
        let inside = (crop - before).min(extent - start);
        Self { before, inside, after: crop - before - inside, start }
    }
}

fn look_up(table: &[f32; 256], src: &[u8], dst: &mut [f32]) {
    for (dst, &byte) in dst.iter_mut().zip(src) {
        *dst = table[usize::from(byte)];
    }
}

fn subtract(scaled: &[f32; 256], src: &[u8], mean: &[f32], std: Option<&f32>, dst: &mut [f32]) {
    for ((dst, &byte), mean) in dst.iter_mut().zip(src).zip(mean) {
        *dst = scaled[usize::from(byte)] - mean;
    }
    if let Some(std) = std {
        dst.iter_mut().for_each(|x| *x /= std);
    }
}

fn divide(x: f32, std: Option<&f32>) -> f32 {
    std.map_or(x, |std| x / std)
}
