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

#[test]
fn a_flag_that_is_not_known_is_refused_with_the_nearest_that_is_of_use() {
    for (arguments, nearest) in [
        (&["train", "text-to-image-lora", "--learning_rat", "1"][..], "learning-rate'"),
        // --learning-rate-ti is pivotal tuning's.
        (&["train", "text-to-image-lora", "--learning_rate_t", "1"], "learning-rate'"),
        (&["train", "pivotal-tuning", "--learning_rate_t", "1"], "learning-rate-ti'"),
        (&["train", "text-to-image-lora", "--zzz"], ""),
        (&["generate", "a star", "--sampler_name", "ddim"], ""),
        (&["lora", "merge", "--quantity", "8", "a", "b"], ""),
        // --hub-token is taken, but not on the help page.
        (&["train", "text-to-image-lora", "--hubtoken", "x"], ""),
    ] {
        let run = Workplace::new().run(arguments);
        assert_eq!(run.status, Some(2), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(&format!("a similar argument exists: '--{nearest}")), "{}", run.stderr);
        assert!(
            !run.stderr.contains("as a value") && !run.stderr.contains("'--hub-token'"),
            "{}",
            run.stderr
        );
    }
}
