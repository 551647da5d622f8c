//! Whole loops equal the reference's over a matrix of options.

#[test]
fn loops_agree() {
    let differences = crate::loops::check("ddim", "DDIMScheduler");
    assert!(differences.cases > 40);
}
