use super::PoolShape;
use super::row::Row;
use crate::Par;
use crate::pieces::for_each_piece;

/// `dst[o]` = sum of the window's elements divided by their number, or, if `count_padding`, by the window's size
/// clipped to the padded map (Caffe; PyTorch's `count_include_pad`).
///
/// # Panics
///
/// If a slice has another length than the shape says or a window has no element of the map.
pub fn avg_pool(shape: &PoolShape, count_padding: bool, src: &[f32], dst: &mut [f32], par: Par) {
    shape.check();
    assert_eq!(src.len(), shape.src_len(), "avg_pool: src");
    assert_eq!(dst.len(), shape.dst_len(), "avg_pool: dst");
    for_each_piece(par, dst, shape.out_plane(), shape.cost(), |i, dst| {
        let src = &src[i * shape.in_plane()..(i + 1) * shape.in_plane()];
        let columns = Row::new(shape);
        for (oy, dst) in dst.chunks_exact_mut(shape.out_size[1]).enumerate() {
            dst.fill(0.0);
            for y in shape.window(0, oy) {
                columns.fold(&src[y * shape.in_size[1]..(y + 1) * shape.in_size[1]], dst, |sum, x| sum + x);
            }
            divide(shape, oy, count_padding, dst);
        }
    });
}

/// Gradient of [`avg_pool`]: `grad_dst` is `[planes, out_size]`. Overwrites `grad_src`, `[planes, in_size]`.
///
/// # Panics
///
/// If a slice has another length than the shape says or a window has no element of the map.
pub fn avg_pool_backward(
    shape: &PoolShape,
    count_padding: bool,
    grad_dst: &[f32],
    grad_src: &mut [f32],
    par: Par,
) {
    shape.check();
    assert_eq!(grad_dst.len(), shape.dst_len(), "avg_pool_backward: grad_dst");
    assert_eq!(grad_src.len(), shape.src_len(), "avg_pool_backward: grad_src");
    for_each_piece(par, grad_src, shape.in_plane(), shape.cost(), |i, grad_src| {
        grad_src.fill(0.0);
        let columns = Row::new(shape);
        let mut share = vec![0.0; shape.out_size[1]];
        let grad_dst = &grad_dst[i * shape.out_plane()..(i + 1) * shape.out_plane()];
        for (oy, grad_dst) in grad_dst.chunks_exact(shape.out_size[1]).enumerate() {
            share.copy_from_slice(grad_dst);
            divide(shape, oy, count_padding, &mut share);
            for y in shape.window(0, oy) {
                columns.spread(&share, &mut grad_src[y * shape.in_size[1]..(y + 1) * shape.in_size[1]]);
            }
        }
    });
}

/// Divides every element of row `oy` of the result by the size of its window.
fn divide(shape: &PoolShape, oy: usize, count_padding: bool, row: &mut [f32]) {
    let extent = |axis: usize, o: usize| {
        if count_padding {
            let padded = shape.in_size[axis] + 2 * shape.padding[axis];
            shape.kernel[axis].min(padded - o * shape.stride[axis])
        } else {
            shape.window(axis, o).len()
        }
    };
    let (rows, inside) = (extent(0, oy), shape.inside());
    for ox in (0..inside.start).chain(inside.end..row.len()) {
        row[ox] /= (rows * extent(1, ox)) as f32;
    }
    let full = (rows * shape.kernel[1]) as f32;
    row[inside].iter_mut().for_each(|d| *d /= full);
}
