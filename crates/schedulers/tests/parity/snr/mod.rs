//! Signal-to-noise ratios, and the noise schedules that they come from.

use candle_diffusers_schedulers::{compute_snr, scheduler_from_other};
use candle_diffusers_test_support::Fixture;
use serde_json::json;

#[test]
fn snr_agrees_for_every_beta_schedule() {
    let fixture = Fixture::open(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/snr/snr.safetensors"));
    for schedule in ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace"] {
        let scheduler = scheduler_from_other("DDPMScheduler", &json!({"beta_schedule": schedule})).unwrap();
        let alphas_cumprod: Vec<f64> =
            scheduler.alphas_cumprod().iter().map(|&alpha| f64::from(alpha)).collect();
        let expected = fixture.values(&format!("{schedule}/alphas_cumprod"));
        // The exponential function in a sigmoid schedule is not the same to the last bit, and a product gathers that.
        let bound = if schedule == "sigmoid" { 1e-6 } else { 0.0 };
        for (timestep, (actual, expected)) in alphas_cumprod.iter().zip(&expected).enumerate() {
            assert!(
                (actual - expected).abs() <= bound * expected,
                "{schedule} {timestep}: {actual} not {expected}"
            );
        }
        let timesteps: Vec<f64> = (0..1000).map(f64::from).collect();
        let snr = compute_snr(scheduler.as_ref(), &timesteps).unwrap();
        for (timestep, (&actual, expected)) in snr.iter().zip(fixture.values(schedule)).enumerate() {
            let difference = (f64::from(actual) - expected).abs();
            assert!(difference <= 1e-6 * expected, "{schedule} {timestep}: {actual} not {expected}");
        }
    }
    let scheduler = scheduler_from_other("DDIMScheduler", &json!({})).unwrap();
    assert!(compute_snr(scheduler.as_ref(), &[1000.0]).is_err());
    assert!(compute_snr(scheduler.as_ref(), &[0.5]).is_err());
    assert_eq!(scheduler.num_train_timesteps(), 1000);
}
