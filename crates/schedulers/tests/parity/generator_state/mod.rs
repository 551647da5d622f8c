//! The state of torch's CPU generator, written and gone on from.

use candle_core::{DType, Device};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, assert_close};

#[test]
fn states_are_those_of_torch_and_go_on_like_them() {
    let fixture = Fixture::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/parity/generator_state/generator_state.safetensors"
    ));
    for (name, uniform, normal) in [
        ("fresh", 0, 0),
        ("uniform", 10, 0),
        ("all words", 624, 0),
        ("second words", 1000, 0),
        ("half a pair", 0, 3),
    ] {
        let mut generator = TorchGenerator::new((1 << 33) + 5);
        generator.rand(&[uniform], DType::F32, &Device::Cpu).unwrap();
        generator.randn(&[normal], DType::F32, &Device::Cpu).unwrap();
        let expected = fixture.get(&format!("{name}/state")).to_vec1::<u8>().unwrap();
        // torch tells a generator that was only seeded from one that has drawn all its words; what both draw next is the same.
        if name != "fresh" {
            assert_eq!(generator.state(), expected, "{name}");
        }
        for state in [generator.state(), expected] {
            let mut resumed = TorchGenerator::from_state(&state).unwrap();
            assert_eq!(resumed.initial_seed(), (1 << 33) + 5);
            let after = resumed.randn(&[5], DType::F64, &Device::Cpu).unwrap();
            assert_close(name, &after, fixture.get(&format!("{name}/after")), 1e-14);
        }
    }
}

#[test]
fn bytes_that_are_no_state_are_refused() {
    let state = TorchGenerator::new(1).state();
    assert!(TorchGenerator::from_state(&state[1..]).is_err());
    assert!(TorchGenerator::from_state(&vec![0; state.len()]).is_err());
    let error = TorchGenerator::from_state(&vec![0xff; state.len()]).unwrap_err().to_string();
    assert!(error.ends_with("expected 5056 bytes as torch.Generator.get_state gives them"), "{error}");
}
