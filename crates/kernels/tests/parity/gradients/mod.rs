//! Gradients at odd sizes against torch's autograd: in float32 within rounding, in bfloat16 as near to the exact ones as torch's own.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_diffusers_kernels::*;
use candle_diffusers_test_support::{Fixture, assert_close, values};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/gradients/gradients.safetensors");
const BOUND: f64 = 1e-5;

type Function = fn(&[Tensor], &Tensor) -> Result<Tensor>;

/// A case of the fixture: its name, its inputs, and the operation, which is given the fixture's mask too.
type Case = (&'static str, &'static [&'static str], Function);

const X: &[&str] = &["x"];
const XY: &[&str] = &["x", "y"];
const LAYER: &[&str] = &["x", "weight", "bias"];
const FACTORS: &[&str] = &["query", "key", "value"];

const fn params(stride: usize, padding: usize) -> Conv2dParams {
    Conv2dParams { stride, padding }
}

const CASES: &[Case] = &[
    ("linear", LAYER, |t, _| linear(&t[0], &t[1], Some(&t[2]))),
    ("linear_narrow", LAYER, |t, _| linear(&t[0], &t[1], Some(&t[2]))),
    ("conv2d_113_9", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(1, 1))),
    ("conv2d_113_8", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(1, 1))),
    ("conv2d_213_9", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(2, 1))),
    ("conv2d_203_5", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(2, 0))),
    ("conv2d_101_17", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(1, 0))),
    ("conv2d_121_3", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(1, 2))),
    ("conv2d_125_3", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(1, 2))),
    ("conv2d_314_3", LAYER, |t, _| conv2d(&t[0], &t[1], Some(&t[2]), params(3, 1))),
    ("conv2d_oblong", &["x", "weight"], |t, _| conv2d(&t[0], &t[1], None, params(1, 1))),
    ("group_norm", LAYER, |t, _| group_norm(&t[0], 3, &t[1], &t[2], 1e-5)),
    ("group_norm_silu", LAYER, |t, _| group_norm_silu(&t[0], 3, &t[1], &t[2], 1e-5)),
    ("add_group_norm_silu", &["x", "vectors", "weight", "bias"], |t, _| {
        add_group_norm_silu(&t[0], &t[1], 2, &t[2], &t[3], 1e-5)
    }),
    ("layer_norm", LAYER, |t, _| layer_norm(&t[0], &t[1], &t[2], 1e-5)),
    ("silu", X, |t, _| silu(&t[0])),
    ("gelu", X, |t, _| gelu(&t[0])),
    ("quick_gelu", X, |t, _| quick_gelu(&t[0])),
    ("geglu", X, |t, _| geglu(&t[0])),
    ("softmax", X, |t, _| softmax_last_dim(&t[0])),
    ("attention", FACTORS, |t, _| attention(&t[0], &t[1], &t[2], 2, 17f64.powf(-0.5), None)),
    ("attention_cross", FACTORS, |t, _| attention(&t[0], &t[1], &t[2], 2, 40f64.powf(-0.5), None)),
    ("attention_masked", FACTORS, |t, mask| attention(&t[0], &t[1], &t[2], 2, 8f64.powf(-0.5), Some(mask))),
    ("add", XY, |t, _| add(&t[0], &t[1])),
    ("add_per_channel", &["x", "vectors"], |t, _| add_per_channel(&t[0], &t[1])),
    ("scale_shift_per_channel", &["x", "scale", "shift"], |t, _| {
        scale_shift_per_channel(&t[0], &t[1], &t[2])
    }),
    ("cat", XY, |t, _| cat(&[&t[0], &t[1]], 1)),
    ("upsample", X, |t, _| upsample_nearest2d(&t[0])),
    ("upsample_to", X, |t, _| upsample_nearest2d_to(&t[0], 9, 13)),
    ("pixels_to_tokens", X, |t, _| pixels_to_tokens(&t[0])),
    ("tokens_to_pixels", X, |t, _| tokens_to_pixels(&t[0], 5, 7)),
];

/// The gradients of a case in a dtype for those inputs that are `wanted`; checks that there are no others.
fn gradients(
    fixture: &Fixture,
    (name, inputs, function): &Case,
    dtype: DType,
    wanted: impl Fn(usize) -> bool,
) -> Vec<Option<Tensor>> {
    let get = |input: &str| fixture.get(&format!("{name}.{input}")).to_dtype(dtype).unwrap();
    let mut vars = Vec::new();
    let tensors: Vec<Tensor> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| match wanted(index) {
            true => {
                vars.push(Some(Var::from_tensor(&get(input)).unwrap()));
                vars[index].as_ref().unwrap().as_tensor().clone()
            }
            false => {
                vars.push(None);
                get(input)
            }
        })
        .collect();
    let mask = fixture.get("attention_masked.mask").to_dtype(dtype).unwrap();
    let output = function(&tensors, &mask).unwrap();
    let found = (output * get("direction")).unwrap().sum_all().unwrap().backward().unwrap();
    let count = vars.iter().flatten().filter(|var| found.get(var).is_some()).count();
    let direction_and_vars = found.get_ids().count();
    // candle's product gives the direction one too.
    assert!(direction_and_vars <= count + 1, "{name}: {direction_and_vars} gradients for {count} variables");
    vars.iter()
        .map(|var| var.as_ref().map(|var| found.get(var).unwrap_or_else(|| panic!("{name}")).clone()))
        .collect()
}

#[test]
fn in_float32_within_rounding() {
    let fixture = Fixture::open(FIXTURE);
    for case in CASES {
        let found = gradients(&fixture, case, DType::F32, |_| true);
        for (input, found) in case.1.iter().zip(found) {
            let expected = fixture.get(&format!("{}.grad.{input}", case.0));
            assert_close(&format!("{}, gradient of {input}", case.0), &found.unwrap(), expected, BOUND);
        }
    }
}

#[test]
fn only_for_what_trains() {
    let fixture = Fixture::open(FIXTURE);
    for case in CASES {
        for trained in 0..case.1.len() {
            let found = gradients(&fixture, case, DType::F32, |index| index == trained);
            let expected = fixture.get(&format!("{}.grad.{}", case.0, case.1[trained]));
            assert_close(case.0, found[trained].as_ref().unwrap(), expected, BOUND);
        }
    }
}

#[test]
fn in_bfloat16_as_exact_as_the_reference() {
    let fixture = Fixture::open(FIXTURE);
    for case in CASES {
        let found = gradients(&fixture, case, DType::BF16, |_| true);
        for (input, found) in case.1.iter().zip(found) {
            let found = found.unwrap();
            assert_eq!(found.dtype(), DType::BF16);
            let expected = values(fixture.get(&format!("{}.grad.{input}", case.0)));
            let squares = values(&found).iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
            let error = (squares / expected.len() as f64).sqrt();
            let of_reference = fixture.values(&format!("{}.bf16_error.{input}", case.0))[0];
            println!("{:<28}{input:<10}{error:.3e}, the reference {of_reference:.3e}", case.0);
            // Rounding is chance: a little more is no worse.
            assert!(
                error <= 1.1 * of_reference + 1e-7,
                "{} {input}: {error:e}, {of_reference:e} in the reference",
                case.0
            );
        }
    }
}

#[test]
fn through_packed_weights() {
    let fixture = Fixture::open(FIXTURE);
    for (name, inputs, _) in CASES.iter().filter(|case| case.1.contains(&"weight") && case.0.len() > 5) {
        let get = |input: &str| fixture.get(&format!("{name}.{input}")).to_dtype(DType::F32).unwrap();
        let conv = name.strip_prefix("conv2d_").map(|numbers| match numbers {
            "oblong" => params(1, 1),
            numbers => {
                let digit = |index: usize| numbers[index..=index].parse().unwrap();
                params(digit(0), digit(1))
            }
        });
        if conv.is_none() && !name.starts_with("linear") {
            continue;
        }
        let weight = PackedWeight::pack(&get("weight")).unwrap();
        let x = Var::from_tensor(&get("x")).unwrap();
        let bias = inputs.contains(&"bias").then(|| Var::from_tensor(&get("bias")).unwrap());
        let bias_tensor = bias.as_ref().map(|bias| bias.as_tensor());
        let output = match conv {
            Some(params) => weight.conv2d(x.as_tensor(), bias_tensor, params),
            None => weight.linear(x.as_tensor(), bias_tensor),
        };
        let loss = (output.unwrap() * get("direction")).unwrap().sum_all().unwrap();
        let found = loss.backward().unwrap();
        assert_close(name, found.get(&x).unwrap(), &get("grad.x"), BOUND);
        if let Some(bias) = bias {
            assert_close(name, found.get(&bias).unwrap(), &get("grad.bias"), BOUND);
        }
    }
}

#[test]
fn double_precision_is_candles() {
    let fixture = Fixture::open(FIXTURE);
    for name in ["linear", "group_norm", "layer_norm", "attention", "silu", "upsample", "cat"] {
        let case = CASES.iter().find(|case| case.0 == name).unwrap();
        let found = gradients(&fixture, case, DType::F64, |_| true);
        for (input, found) in case.1.iter().zip(found) {
            let expected = fixture.get(&format!("{name}.grad.{input}"));
            assert_close(name, &found.unwrap(), expected, 1e-6);
        }
    }
}

#[test]
fn gradients_are_those_of_small_differences() {
    let fixture = Fixture::open(FIXTURE);
    for name in ["linear", "conv2d_213_9", "group_norm_silu", "attention_masked", "geglu"] {
        let case = CASES.iter().find(|case| case.0 == name).unwrap();
        let (_, inputs, function) = case;
        let get = |input: &str| fixture.get(&format!("{name}.{input}")).to_dtype(DType::F64).unwrap();
        let mask = fixture.get("attention_masked.mask").to_dtype(DType::F64).unwrap();
        let found = gradients(&fixture, case, DType::F32, |_| true);
        for (index, input) in inputs.iter().enumerate() {
            let x = get(input);
            let numbers = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let shift: Vec<f64> =
                (0..numbers.len()).map(|i| ((i * 7919) % 101) as f64 / 50.0 - 1.0).collect();
            let shift = Tensor::from_vec(shift, x.shape(), &Device::Cpu).unwrap();
            let at = |distance: f64| {
                let mut tensors: Vec<Tensor> = inputs.iter().map(|input| get(input)).collect();
                tensors[index] = (&x + (&shift * distance).unwrap()).unwrap();
                let output = function(&tensors, &mask).unwrap();
                values(&(output * get("direction")).unwrap().sum_all().unwrap())[0]
            };
            let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
            let gradient = found[index].as_ref().unwrap().to_dtype(DType::F64).unwrap();
            let expected = values(&(gradient * &shift).unwrap().sum_all().unwrap())[0];
            assert!(
                (slope - expected).abs() < 1e-4 * expected.abs().max(1.0),
                "{name} {input}: {slope} {expected}"
            );
        }
    }
}
