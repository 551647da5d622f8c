//! Draws of torch's CPU generator: uniform numbers and integers equal bit for bit, normal ones within 1e-6.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_schedulers::{NoiseSource, TorchGenerator};
use candle_diffusers_test_support::{Fixture, assert_close, relative_difference, values};

fn fixture() -> Fixture {
    Fixture::open(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/parity/torch_generator/torch_generator.safetensors"
    ))
}

fn draw(spec: &str, generator: &mut TorchGenerator) -> Tensor {
    let parts: Vec<&str> = spec.split(':').collect();
    let dtype = |name: &str| match name {
        "f32" => DType::F32,
        "f64" => DType::F64,
        "f16" => DType::F16,
        "bf16" => DType::BF16,
        other => panic!("{other}"),
    };
    let count = parts[parts.len() - 1].parse::<usize>().unwrap();
    match parts[0] {
        "randn" => generator.randn(&[count], dtype(parts[1]), &Device::Cpu),
        "rand" => generator.rand(&[count], dtype(parts[1]), &Device::Cpu),
        "randperm" => generator.randperm(count, &Device::Cpu),
        _ => generator.randint(parts[1].parse().unwrap(), parts[2].parse().unwrap(), &[count], &Device::Cpu),
    }
    .unwrap()
}

#[test]
fn draws_in_a_row_agree() {
    let fixture = fixture();
    let mut programs: Vec<&str> =
        fixture.names().into_iter().filter_map(|name| Some(name.rsplit_once('/')?.0)).collect();
    programs.dedup();
    assert!(programs.len() > 50);
    for name in programs {
        let (seed, program) = name.split_once('/').unwrap();
        let mut generator = TorchGenerator::new(seed.parse().unwrap());
        for (position, spec) in program.split(' ').enumerate() {
            let key = format!("{name}/{position}");
            let (actual, expected) = (draw(spec, &mut generator), fixture.get(&key));
            assert_eq!(actual.dtype(), expected.dtype(), "{key}");
            if spec.starts_with("randn") {
                let bound = match expected.dtype() {
                    DType::F64 => 1e-14,
                    DType::F32 => 1e-6,
                    // A difference of 1e-7 before rounding may round to the neighbour.
                    DType::F16 => 1e-3,
                    _ => 8e-3,
                };
                assert_close(&key, &actual, expected, bound);
            } else if actual.dtype() == DType::I64 {
                assert_eq!(actual.to_vec1::<i64>().unwrap(), expected.to_vec1::<i64>().unwrap(), "{key}");
            } else {
                assert_eq!(values(&actual), values(expected), "{key}");
            }
        }
    }
}

#[test]
fn twenty_thousand_normal_numbers_agree() {
    let fixture = fixture();
    let expected = fixture.get("long");
    let actual = TorchGenerator::new(33).randn(expected.dims(), DType::F32, &Device::Cpu).unwrap();
    let absolute = values(&(&actual - expected).unwrap().abs().unwrap()).into_iter().fold(0.0, f64::max);
    assert!(absolute <= 1e-6, "largest absolute difference {absolute:e}");
    let differing = values(&actual.ne(expected).unwrap()).into_iter().sum::<f64>();
    println!(
        "largest difference {:e}, {differing} of 20003 differ in any bit",
        relative_difference(&actual, expected)
    );
}

#[test]
fn a_list_of_generators_draws_each_picture_alone() {
    let shape = [2, 1, 3, 7];
    let generator = TorchGenerator::new;
    let both = vec![generator(3), generator(4)].randn(&shape, DType::F32, &Device::Cpu).unwrap();
    let alone = generator(4).randn(&[1, 1, 3, 7], DType::F32, &Device::Cpu).unwrap();
    assert_eq!(values(&both.narrow(0, 1, 1).unwrap()), values(&alone));
    let one = vec![generator(3)].randn(&shape, DType::F32, &Device::Cpu).unwrap();
    assert_eq!(values(&one), values(&generator(3).randn(&shape, DType::F32, &Device::Cpu).unwrap()));
    let wrong = vec![generator(3), generator(4)].randn(&[3, 4], DType::F32, &Device::Cpu).unwrap_err();
    assert!(wrong.to_string().contains("a first dimension of 2"), "{wrong}");
    assert!(Vec::<TorchGenerator>::new().randn(&[0, 4], DType::F32, &Device::Cpu).is_err());
}

#[test]
fn what_cannot_be_drawn_is_an_error() {
    let mut generator = TorchGenerator::new(0);
    assert!(generator.randn(&[usize::MAX, 2], DType::F32, &Device::Cpu).is_err());
    assert!(generator.rand(&[1 << 40], DType::F32, &Device::Cpu).is_err());
    assert!(generator.randn(&[2], DType::U8, &Device::Cpu).is_err());
    assert!(generator.rand(&[2], DType::I64, &Device::Cpu).is_err());
    assert!(generator.randint(3, 3, &[1], &Device::Cpu).is_err());
    assert!(generator.randperm(usize::MAX, &Device::Cpu).is_err());
    assert_eq!(generator.randn(&[0, 3], DType::F32, &Device::Cpu).unwrap().dims(), &[0, 3]);
}
