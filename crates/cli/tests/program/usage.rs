//! The help pages.

use crate::program::Workplace;

#[test]
fn help_pages() {
    let workplace = Workplace::new();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_generate", &["generate", "--help"]),
        ("help_convert", &["convert", "--help"]),
        ("help_inspect", &["inspect", "--help"]),
        ("help_lora", &["lora", "--help"]),
        ("help_lora_merge", &["lora", "merge", "--help"]),
        ("help_lora_extract", &["lora", "extract", "--help"]),
        ("help_lora_resize", &["lora", "resize", "--help"]),
        ("help_train", &["train", "--help"]),
    ] {
        insta::assert_snapshot!(name, workplace.succeed(arguments).stdout);
    }
}

#[test]
fn the_version_is_printed() {
    let expected = concat!("diffuse ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(Workplace::new().succeed(["--version"]).stdout, expected);
}
