//! Whole loops equal the reference's over a matrix of options.

#[test]
fn loops_agree() {
    let differences = crate::loops::check("dpm_solver_multistep", "DPMSolverMultistepScheduler");
    assert!(differences.cases > 40);
}
