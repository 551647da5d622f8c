//! Comparisons with what the reference libraries say; CONTRIBUTING.md tells how they are made.

mod embedding_layouts;
mod lora_layouts;
mod lora_operations;
mod pickle;
mod single_file;
