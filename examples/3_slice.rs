//! One slice of a checkpoint: some rows of some columns of one tensor, whatever topology wrote it.
//!
//!     target/release/examples/3_slice RUN/checkpoints/step-00000020
//!
//! Room: `checkpoint`. A file says where each rank's slice of a tensor lies (docs/checkpoint-format.md), so a reader takes only the
//! bytes that it needs: that is how a run goes on with other axes than it began with.

use herd::checkpoint::{Checkpoint, Group};

fn main() -> herd::error::Result<()> {
    let path = std::env::args().nth(1).expect("the directory of a checkpoint");
    let checkpoint = Checkpoint::open(path.as_ref())?;
    println!("step {}, {} bytes, written {}", checkpoint.meta().step, checkpoint.bytes(), checkpoint.written());
    let found = checkpoint
        .tensors()
        .find(|(group, name, _)| *group == Group::Param && name.ends_with("0.self_attn.q_proj.weight"));
    let (group, name, shape) = found.expect("every Llama has this tensor");

    // The lower right quarter: its rectangle by offset and extent, in fp32.
    let offset = [shape[0] / 2, shape[1] / 2];
    let extent = [shape[0] - offset[0], shape[1] - offset[1]];
    let mut quarter = vec![0f32; extent[0] * extent[1]];
    checkpoint.read(group, name, &offset, &extent, 0, &mut quarter)?;

    let mut whole = vec![0f32; shape[0] * shape[1]];
    checkpoint.read(group, name, &[0, 0], shape, 0, &mut whole)?;
    let row = |r: usize| &whole[(offset[0] + r) * shape[1] + offset[1]..][..extent[1]];
    assert!(quarter.chunks(extent[1]).enumerate().all(|(r, part)| part == row(r)));
    println!("{name} {shape:?} from {offset:?}: {extent:?} elements, first {:?}", &quarter[..4.min(quarter.len())]);
    Ok(())
}
