//! Whole denoising loops, step by step as `loops.py` ran them with the reference.

use std::path::PathBuf;

use candle_core::{DType, Tensor};
use candle_diffusers_schedulers::{
    DpmSolverMultistepConfig, DpmSolverMultistepScheduler, NoiseSource, Result, Scheduler, StepOptions,
    TorchGenerator, config_from_json, scheduler_from_other,
};
use candle_diffusers_test_support::{Fixture, relative_difference, values};
use serde_json::Value;

/// Channels of a sample in `loops.py`.
const CHANNELS: usize = 3;

/// The largest relative differences over all cases of one scheduler.
#[derive(Debug, Default)]
pub(crate) struct Differences {
    pub(crate) samples: f64,
    pub(crate) sigmas: f64,
    pub(crate) pred_original_sample: f64,
    pub(crate) add_noise: f64,
    pub(crate) cases: usize,
}

/// Runs all cases of the folder and fails where one differs by more than its bound: 1e-5 of the scale in float32.
pub(crate) fn check(folder: &str, class_name: &str) -> Differences {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parity").join(folder);
    let fixture = Fixture::open(path.join(format!("{folder}.safetensors")));
    let cases = config_from_json(&std::fs::read_to_string(path.join("cases.json")).unwrap()).unwrap();
    let mut differences = Differences::default();
    let mut failures = Vec::new();
    for (index, case) in cases.as_array().unwrap().iter().enumerate() {
        let mut one = Case { fixture: &fixture, case, prefix: format!("{index}/"), failures: Vec::new() };
        if let Err(error) = one.run(class_name, &mut differences) {
            one.failures.push(format!("case {index} {case}: {error}"));
        }
        failures.append(&mut one.failures);
        differences.cases += 1;
    }
    println!("{class_name}: {differences:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    differences
}

struct Case<'a> {
    fixture: &'a Fixture,
    case: &'a Value,
    prefix: String,
    failures: Vec<String>,
}

impl Case<'_> {
    fn expected(&self, name: &str) -> &Tensor {
        self.fixture.get(&format!("{}{name}", self.prefix))
    }

    fn has(&self, name: &str) -> bool {
        self.fixture.contains(&format!("{}{name}", self.prefix))
    }

    fn numbers(&self, field: &str) -> Option<Vec<f64>> {
        Some(self.case.get(field)?.as_array()?.iter().map(|number| number.as_f64().unwrap()).collect())
    }

    fn number(&self, field: &str) -> Option<usize> {
        Some(self.case.get(field)?.as_u64()? as usize)
    }

    fn dtype(&self) -> DType {
        match self.case.get("dtype").and_then(Value::as_str).unwrap_or("f32") {
            "f16" => DType::F16,
            "bf16" => DType::BF16,
            "f64" => DType::F64,
            _ => DType::F32,
        }
    }

    /// Half precision is rounded after each operation there and once here, over several steps.
    fn bound(&self) -> f64 {
        match self.dtype() {
            DType::F16 => 6e-3,
            DType::BF16 => 5e-2,
            _ if self.is_ill_conditioned() => 5e-4,
            _ => 1e-5,
        }
    }

    /// Whether the reference's own rounding shows: almost no signal at the last training timesteps, and square roots that
    /// are not the nearest numbers (see `loops.py`). The same cases with nearest square roots have the usual bound.
    fn is_ill_conditioned(&self) -> bool {
        let field = |name: &str| self.case.get("config").and_then(|config| config.get(name));
        let no_signal = field("rescale_betas_zero_snr") == Some(&Value::Bool(true))
            || field("beta_schedule") == Some(&Value::from("squaredcos_cap_v2"));
        no_signal && self.case.get("nearest_square_roots").is_none()
    }

    /// Whether timesteps are made of sigmas and not rounded, so that the last bit of a logarithm shows in them.
    fn has_timesteps_of_sigmas(&self, class_name: &str) -> bool {
        let names = ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "timestep_type"];
        let spaced =
            self.case.get("config").is_some_and(|config| names.iter().any(|name| config.get(name).is_some()));
        class_name == "EulerDiscreteScheduler" && (spaced || self.case.get("sigmas").is_some())
    }

    fn compare_timesteps(&mut self, class_name: &str, timesteps: &[f64]) {
        let expected = values(self.expected("timesteps"));
        let bound = if self.has_timesteps_of_sigmas(class_name) { 5e-7 } else { 0.0 };
        let is_close = |(a, b): &(&f64, &f64)| (*a - *b).abs() <= bound * b.abs();
        let different: Vec<_> =
            timesteps.iter().zip(&expected).filter(|pair| !is_close(pair)).take(4).collect();
        let lengths = (timesteps.len(), expected.len());
        if !different.is_empty() || lengths.0 != lengths.1 {
            self.failures.push(format!("{}timesteps {}: {lengths:?} {different:?}", self.prefix, self.case));
        }
    }

    fn compare_sigmas(&mut self, sigmas: &[f32], differences: &mut Differences) {
        let expected = values(self.expected("sigmas"));
        assert_eq!(sigmas.len(), expected.len(), "{}sigmas {}", self.prefix, self.case);
        let bound = if self.is_ill_conditioned() { 2e-3 } else { SIGMA_BOUND };
        for (&sigma, expected) in sigmas.iter().zip(expected) {
            let sigma = f64::from(sigma);
            let difference = if expected == 0.0 { sigma } else { (sigma / expected - 1.0).abs() };
            if !self.is_ill_conditioned() {
                differences.sigmas = differences.sigmas.max(difference);
            }
            if difference.is_nan() || difference > bound {
                self.failures.push(format!("{}sigmas {}: {sigma} not {expected}", self.prefix, self.case));
            }
        }
    }

    fn compare(&mut self, name: &str, actual: &Tensor, largest: &mut f64) {
        let expected = self.expected(name);
        let difference = relative_difference(actual, expected);
        if self.dtype() == DType::F32 && !self.is_ill_conditioned() {
            *largest = largest.max(difference);
        }
        let bound = self.bound();
        if actual.dtype() != expected.dtype() {
            let (found, expected) = (actual.dtype(), expected.dtype());
            self.failures.push(format!("{}{name} {}: {found:?}, not {expected:?}", self.prefix, self.case));
        }
        if difference > bound {
            self.failures.push(format!("{}{name} {}: {difference:e}", self.prefix, self.case));
        }
    }

    fn prepare(&self, scheduler: &mut dyn Scheduler) -> Result<()> {
        if let Some(timesteps) = self.numbers("timesteps") {
            scheduler.set_custom_timesteps(&timesteps)
        } else if let Some(sigmas) = self.numbers("sigmas") {
            scheduler.set_custom_sigmas(&sigmas)
        } else {
            scheduler.set_timesteps(self.number("steps").unwrap())
        }
    }

    fn scheduler(&self, class_name: &str) -> Result<Box<dyn Scheduler>> {
        let config = self.case.get("config").cloned().unwrap_or_else(|| serde_json::json!({}));
        let Some(mu) = self.case.get("mu").and_then(Value::as_f64) else {
            let mut scheduler = scheduler_from_other(class_name, &config)?;
            if !self.has("train/add_noise") {
                self.prepare(scheduler.as_mut())?;
            }
            return Ok(scheduler);
        };
        let config: DpmSolverMultistepConfig = serde_json::from_value(config).unwrap();
        let mut scheduler = DpmSolverMultistepScheduler::new(config)?;
        scheduler.set_timesteps_shifted(self.number("steps").unwrap(), mu)?;
        Ok(Box::new(scheduler))
    }

    fn options(&self, bank: &Tensor) -> Result<StepOptions> {
        let mut options = StepOptions::default();
        let given = |name: &str| self.case.get("options").and_then(|options| options.get(name));
        let number = |name: &str, default: f64| given(name).and_then(Value::as_f64).unwrap_or(default);
        options.eta = number("eta", 0.0);
        options.s_churn = number("s_churn", 0.0);
        options.s_tmin = number("s_tmin", 0.0);
        options.s_tmax = number("s_tmax", f64::INFINITY);
        options.s_noise = number("s_noise", 1.0);
        options.use_clipped_model_output = given("use_clipped_model_output").is_some();
        if self.case.get("variance_noise").is_some() {
            options.variance_noise = Some(bank.get(2)?.narrow(1, 0, CHANNELS)?);
        }
        Ok(options)
    }

    fn run(&mut self, class_name: &str, differences: &mut Differences) -> Result<()> {
        let dtype = self.dtype();
        let bank = self.fixture.get("bank").to_dtype(dtype)?;
        let start = self.fixture.get("start").to_dtype(dtype)?;
        let mut scheduler = self.scheduler(class_name)?;
        if let Some(train) = self.numbers("train") {
            let noise = bank.get(1)?.narrow(1, 0, CHANNELS)?;
            let noisy = scheduler.add_noise(&start, &noise, &train)?;
            self.compare("train/add_noise", &noisy, &mut differences.add_noise);
            if self.has("train/velocity") {
                let velocity = scheduler.get_velocity(&start, &noise, &train)?;
                self.compare("train/velocity", &velocity, &mut differences.add_noise);
            }
            self.prepare(scheduler.as_mut())?;
        }
        let timesteps = scheduler.timesteps().to_vec();
        self.compare_timesteps(class_name, &timesteps);
        if let Some(sigmas) = scheduler.sigmas() {
            self.compare_sigmas(sigmas, differences);
        }
        let init = values(self.expected("init_noise_sigma"))[0];
        assert!((scheduler.init_noise_sigma() / init - 1.0).abs() < SIGMA_BOUND, "{}", self.case);
        self.denoise(scheduler.as_mut(), &timesteps, &bank, &start, differences)
    }

    fn denoise(
        &mut self,
        scheduler: &mut dyn Scheduler,
        timesteps: &[f64],
        bank: &Tensor,
        start: &Tensor,
        differences: &mut Differences,
    ) -> Result<()> {
        let begin = self.number("begin").unwrap_or(0);
        if begin > 0 {
            scheduler.set_begin_index(begin);
        }
        let at = vec![timesteps[begin]; start.dims()[0]];
        let noisy = scheduler.add_noise(start, &bank.get(0)?.narrow(1, 0, CHANNELS)?, &at)?;
        self.compare("add_noise", &noisy, &mut differences.add_noise);
        let scaled_start =
            (start.to_dtype(DType::F64)? * scheduler.init_noise_sigma())?.to_dtype(start.dtype())?;
        let mut sample = if begin > 0 { noisy } else { scaled_start };

        let mut noise: Box<dyn NoiseSource> =
            Box::new(TorchGenerator::new(self.number("seed").unwrap_or(0) as u64));
        let options = self.options(bank)?;
        let channels = self.number("channels").unwrap_or(CHANNELS);
        let timesteps = &timesteps[begin..];
        let recorded = recorded(timesteps.len());
        let mut samples = Vec::new();
        let mut original = None;
        for (position, &timestep) in timesteps.iter().enumerate() {
            let scaled = scheduler.scale_model_input(&sample, timestep)?;
            let scaled = scaled.repeat((1, channels / CHANNELS, 1, 1))?;
            let model_output = ((scaled * 0.25)? + bank.get(position % 5)?.narrow(1, 0, channels)?)?;
            let output = scheduler.step(&model_output, timestep, &sample, noise.as_mut(), &options)?;
            sample = output.prev_sample;
            original = output.pred_original_sample;
            if recorded.contains(&position) {
                samples.push(sample.clone());
            }
        }
        for (index, sample) in samples.iter().enumerate() {
            let expected = self.expected("samples").get(index)?;
            let difference = relative_difference(sample, &expected);
            if self.dtype() == DType::F32 && !self.is_ill_conditioned() {
                differences.samples = differences.samples.max(difference);
            }
            if difference > self.bound() {
                let what = format!("step {} of {}", recorded[index], timesteps.len());
                self.failures.push(format!("{}{what} {}: {difference:e}", self.prefix, self.case));
                break;
            }
            assert_eq!(sample.dtype(), expected.dtype());
        }
        assert_eq!(original.is_some(), self.has("pred_original_sample"), "{}", self.case);
        if let Some(original) = original {
            self.compare("pred_original_sample", &original, &mut differences.pred_original_sample);
        }
        Ok(())
    }
}

/// The reference's square root in float32 is not always the nearest number.
const SIGMA_BOUND: f64 = 1e-6;

/// The steps whose result is kept, as `loops.py` has them.
fn recorded(count: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = [0, 1, 2, count / 2].into();
    steps.extend((count.saturating_sub(2)..count).filter(|step| *step > 2));
    steps.retain(|step| *step < count);
    steps.sort_unstable();
    steps.dedup();
    steps
}
