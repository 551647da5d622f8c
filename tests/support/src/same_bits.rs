use std::env;
use std::process::Command;

use candle_core::{DType, Tensor};

/// Set in the processes that compute with another number of threads.
const VARIABLE: &str = "CANDLE_DIFFUSERS_TEST_DIGESTS";

/// Fails unless results, with their names, have the same bits with 1 thread and with each of `threads`.
///
/// The number of threads is read from the environment once, which a test cannot change within its process: `test`, the test that calls this, is
/// run alone in a process for each, which prints a number for each result that changes with any of its bits.
pub fn assert_threads_change_no_bit(
    test: &str,
    threads: &[usize],
    results: impl Iterator<Item = (String, Tensor)>,
) {
    if env::var_os(VARIABLE).is_some() {
        results.for_each(|(name, result)| println!("digest of {name}: {:016x}", digest(&result)));
        return;
    }
    let digests = |threads: usize| -> Vec<String> {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(VARIABLE, "1")
            .env("RAYON_NUM_THREADS", threads.to_string())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{threads} threads: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.lines().filter(|line| line.contains("digest of")).map(str::to_string).collect()
    };
    let one = digests(1);
    assert!(!one.is_empty(), "{test} is no test of this program, or has no results");
    for &threads in threads {
        assert_eq!(one, digests(threads), "{threads} threads");
    }
}

/// FNV-1a over the bits.
fn digest(result: &Tensor) -> u64 {
    let values: Vec<f32> = result.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    assert!(values.iter().all(|value| value.is_finite()));
    values.iter().fold(14_695_981_039_346_656_037, |digest, value| {
        (digest ^ u64::from(value.to_bits())).wrapping_mul(1_099_511_628_211)
    })
}
