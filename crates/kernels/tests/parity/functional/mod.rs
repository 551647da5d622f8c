//! Each operation and its gradients against torch.nn.functional.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_diffusers_kernels::*;
use candle_diffusers_test_support::{Fixture, assert_close};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/functional/functional.safetensors");
const BOUND: f64 = 2e-6;

/// Compares `function`'s result for the fixture's inputs, and its gradients for the fixture's direction; `without_gradient` are the cases whose
/// backward candle lacks.
fn check(fixture: &Fixture, name: &str, inputs: &[&str], function: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let vars: Vec<Var> = inputs
        .iter()
        .map(|input| Var::from_tensor(fixture.get(&format!("{name}.{input}"))).unwrap())
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let output = function(&tensors).unwrap();
    assert_close(name, &output, fixture.get(&format!("{name}.output")), BOUND);
    let gradients =
        (output * fixture.get(&format!("{name}.direction"))).unwrap().sum_all().unwrap().backward().unwrap();
    for (input, var) in inputs.iter().zip(&vars) {
        let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name}: no gradient for {input}"));
        assert_close(
            &format!("{name}, gradient of {input}"),
            gradient,
            fixture.get(&format!("{name}.grad.{input}")),
            BOUND,
        );
    }
}

#[test]
fn linear_and_convolutions() {
    let fixture = Fixture::open(FIXTURE);
    check(&fixture, "linear", &["x", "weight", "bias"], |t| linear(&t[0], &t[1], Some(&t[2])));
    check(&fixture, "linear_row", &["x", "weight"], |t| linear(&t[0], &t[1], None));
    for (stride, padding, kernel) in [(1, 1, 3), (2, 1, 3), (2, 0, 3), (1, 0, 1), (1, 2, 5)] {
        let name = format!("conv2d_{stride}{padding}{kernel}");
        check(&fixture, &name, &["x", "weight", "bias"], |t| {
            conv2d(&t[0], &t[1], Some(&t[2]), Conv2dParams { stride, padding })
        });
    }
}

#[test]
fn norms_and_activations() {
    let fixture = Fixture::open(FIXTURE);
    let parameters = ["x", "weight", "bias"];
    check(&fixture, "group_norm", &parameters, |t| group_norm(&t[0], 4, &t[1], &t[2], 1e-5));
    check(&fixture, "group_norm_silu", &parameters, |t| group_norm_silu(&t[0], 2, &t[1], &t[2], 1e-6));
    check(&fixture, "layer_norm", &parameters, |t| layer_norm(&t[0], &t[1], &t[2], 1e-5));
    check(&fixture, "silu", &["input"], |t| silu(&t[0]));
    check(&fixture, "gelu", &["input"], |t| gelu(&t[0]));
    check(&fixture, "quick_gelu", &["input"], |t| quick_gelu(&t[0]));
    check(&fixture, "geglu", &["x"], |t| geglu(&t[0]));
    check(&fixture, "softmax", &["input"], |t| softmax_last_dim(&t[0]));
}

#[test]
fn attention_with_and_without_mask() {
    let fixture = Fixture::open(FIXTURE);
    let inputs = ["query", "key", "value"];
    for name in ["attention", "attention_cross"] {
        check(&fixture, name, &inputs, |t| attention(&t[0], &t[1], &t[2], 4, 0.5, None));
    }
    let inputs = ["query", "key", "value", "mask"];
    check(&fixture, "attention_masked", &inputs, |t| attention(&t[0], &t[1], &t[2], 4, 0.5, Some(&t[3])));
}

#[test]
fn upsampling() {
    let fixture = Fixture::open(FIXTURE);
    check(&fixture, "upsample", &["input"], |t| upsample_nearest2d(&t[0]));
    let input = fixture.get("upsample_to.input");
    let output = upsample_nearest2d_to(input, 7, 9).unwrap();
    assert_close("upsample_to", &output, fixture.get("upsample_to.output"), 0.0);
}

#[test]
fn half_precision_keeps_its_dtype() {
    let fixture = Fixture::open(FIXTURE);
    for (dtype, bound) in [(DType::F16, 2e-2), (DType::BF16, 5e-2)] {
        let get = |name: &str| fixture.get(name).to_dtype(dtype).unwrap();
        let mixed =
            attention(&get("attention.query"), &get("attention.key"), &get("attention.value"), 4, 0.5, None)
                .unwrap();
        let normed = group_norm_silu(
            &get("group_norm_silu.x"),
            2,
            &get("group_norm_silu.weight"),
            &get("group_norm_silu.bias"),
            1e-6,
        )
        .unwrap();
        let params = Conv2dParams { stride: 1, padding: 1 };
        let convolved =
            conv2d(&get("conv2d_113.x"), &get("conv2d_113.weight"), Some(&get("conv2d_113.bias")), params)
                .unwrap();
        for (name, output) in [("attention", mixed), ("group_norm_silu", normed), ("conv2d_113", convolved)] {
            assert_eq!(output.dtype(), dtype);
            assert_close(name, &output, fixture.get(&format!("{name}.output")), bound);
        }
    }
}

#[test]
fn queries_in_groups_give_the_same_bits_as_alone() {
    // So many keys that the queries are taken in groups of 16.
    let device = Device::Cpu;
    let keys = Tensor::randn(0f32, 1.0, (1, 600_000, 4), &device).unwrap();
    let queries = Tensor::randn(0f32, 1.0, (1, 40, 4), &device).unwrap();
    let together = attention(&queries, &keys, &keys, 2, 0.5, None).unwrap();
    let first = attention(&queries.narrow(1, 0, 27).unwrap(), &keys, &keys, 2, 0.5, None).unwrap();
    assert_close(
        "the first 16 of 40 and of 27",
        &together.narrow(1, 0, 16).unwrap(),
        &first.narrow(1, 0, 16).unwrap(),
        0.0,
    );
    assert_eq!(together.dims(), [1, 40, 4]);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    let params = Conv2dParams { stride: 1, padding: 0 };
    assert!(linear(&zeros(&[2, 5]), &zeros(&[3, 4]), None).is_err());
    assert!(linear(&zeros(&[4]), &zeros(&[3, 4]), None).is_err());
    // By candle's operations, which would repeat a single number.
    let doubles = |shape: &[usize]| zeros(shape).to_dtype(DType::F64).unwrap();
    let bias = doubles(&[1]);
    let problem = linear(&doubles(&[2, 4]), &doubles(&[3, 4]), Some(&bias)).unwrap_err().to_string();
    assert!(problem.contains("linear: the bias is [1], expected [3]"), "{problem}");
    let (picture, weight) = (doubles(&[1, 4, 4, 4]), doubles(&[3, 4, 3, 3]));
    let problem = conv2d(&picture, &weight, Some(&bias), params).unwrap_err().to_string();
    assert!(problem.contains("conv2d: the bias is [1], expected [3]"), "{problem}");
    assert!(conv2d(&zeros(&[1, 2, 4, 4]), &zeros(&[3, 4, 3, 3]), None, params).is_err());
    assert!(conv2d(&zeros(&[1, 4, 2, 2]), &zeros(&[3, 4, 3, 3]), None, params).is_err());
    assert!(group_norm(&zeros(&[1, 6, 2]), 4, &zeros(&[6]), &zeros(&[6]), 1e-5).is_err());
    assert!(group_norm(&zeros(&[1, 6, 2]), 0, &zeros(&[6]), &zeros(&[6]), 1e-5).is_err());
    assert!(geglu(&zeros(&[2, 3])).is_err());
    assert!(attention(&zeros(&[1, 2, 6]), &zeros(&[1, 2, 6]), &zeros(&[1, 2, 6]), 4, 1.0, None).is_err());
    assert!(softmax_last_dim(&zeros(&[])).is_err());
}
