//! What users' files did to herd, as a table: each row makes an input, runs one command on it, and says what must come of it.
//! A new row goes into the file of its subject; a new subject is one more file, with one more line here.

mod config;
mod data;
mod described;
mod models;
mod resume;
mod table;
mod text;

#[test]
fn every_row() {
    table::check(&[
        ("texts", data::rows()),
        ("encodings", text::rows()),
        ("token files", data::tokens()),
        ("configurations and tokenizers", config::rows()),
        ("descriptions of models", described::rows()),
        ("models", models::rows()),
        ("resumes", resume::rows()),
    ]);
}
