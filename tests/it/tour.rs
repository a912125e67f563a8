//! The tour in `examples/`, as a reader runs it: `cargo build --release --examples` first, as `make test` does.

use super::support::{mpirun, said};
use super::train::Run;
use std::path::PathBuf;
use std::process::Command;

/// Examples lie beside the binary.
fn example(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_herd")).with_file_name("examples").join(name)
}

#[test]
fn two_ranks_on_a_wire() {
    let said = said(mpirun(2).arg(example("1_wire")));
    assert!(said.contains("2 ranks: sum [3.0, 6.0, 9.0]") && said.contains("losses [0.5]"), "{said}");
}

#[test]
fn a_layer_against_autograd() {
    assert!(said(&mut Command::new(example("2_layer"))).contains("d down_proj"));
}

#[test]
fn a_slice_of_a_checkpoint_that_two_ranks_wrote() {
    let run = Run::new();
    run.losses(2, "tour", &["train.steps=4", "parallel.tensor=2"]);
    let path = run.path("tour").join("checkpoints").join("step-00000004");
    let said = said(Command::new(example("3_slice")).arg(&path));
    assert!(said.contains("step 4") && said.contains("[64, 48] from [32, 24]: [32, 24] elements"), "{said}");
}

#[test]
fn a_new_schedule_in_the_simulator() {
    let said = said(&mut Command::new(example("4_schedule")));
    assert!(said.contains("gpipe in rounds of 4: bubble") && said.contains("the last stage backwards: "), "{said}");
}

#[test]
fn a_kernel_and_its_reference() {
    let said = said(&mut Command::new(example("5_kernel")));
    assert!(said.contains("Float: y differs") && said.contains("BFloat16: y differs"), "{said}");
}
