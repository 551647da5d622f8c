//! Whole loops equal the reference's over a matrix of options.

#[test]
fn loops_agree() {
    let differences = crate::loops::check("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler");
    assert!(differences.cases > 40);
}
