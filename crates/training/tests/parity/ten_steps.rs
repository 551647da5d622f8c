//! Ten steps of a recipe beside the reference's, as a folder's `export.py` has written them.

use candle_core::{DType, Device, Tensor};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{Fixture, assert_close, values};
use candle_diffusers_training::{
    AdamW, AdamWConfig, EmaConfig, EmaModel, LrSchedule, LrScheduleOptions, Parameter, ParameterGroup,
    RandomSource, Result, Trainer, TrainerOptions, parameters,
};
use serde_json::Value;

const STEPS: usize = 10;

/// A fixture and its `cases.json`.
pub(crate) struct Reference {
    pub(crate) fixture: Fixture,
    pub(crate) settings: Value,
}

impl Reference {
    /// That of the folder `name`.
    pub(crate) fn open(name: &str) -> Self {
        let folder = format!("{}/tests/parity/{name}", env!("CARGO_MANIFEST_DIR"));
        let settings = std::fs::read(format!("{folder}/cases.json")).unwrap();
        let fixture = Fixture::open(format!("{folder}/{name}.safetensors"));
        Self { fixture, settings: serde_json::from_slice(&settings).unwrap() }
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.settings["cases"].as_object().unwrap().iter()
    }

    /// Which pictures a batch has, with their captions.
    pub(crate) fn batch(&self, batch: usize) -> Vec<(usize, String)> {
        let captions = self.settings["captions"].as_array().unwrap();
        let size = self.settings["batch"].as_u64().unwrap() as usize;
        let index = |i: usize| (batch * size + i) % captions.len();
        (0..size).map(|i| (index(i), captions[index(i)].as_str().unwrap().to_string())).collect()
    }

    /// Gives parameters the values that the reference began with, where those are random.
    pub(crate) fn begin(&self, name: &str, parameters: &[Parameter]) {
        for Parameter { name: parameter, var } in parameters {
            let key = format!("{name}/start/{parameter}");
            if self.fixture.contains(&key) {
                var.set(&self.fixture.get(&key).to_dtype(DType::F32).unwrap()).unwrap();
            }
        }
    }

    /// Takes the steps of a case, with `loss` of each batch, and compares losses and weights.
    pub(crate) fn check(
        &self,
        name: &str,
        parameters: Vec<Parameter>,
        learning_rate: f64,
        loss: impl Fn(usize, &mut dyn RandomSource) -> Result<Tensor>,
    ) {
        let mut trainer = trainer(&self.settings["cases"][name], parameters, learning_rate);
        let [losses, digests] =
            ["losses", "digests"].map(|what| self.fixture.values(&format!("{name}/{what}")));
        assert_eq!([losses.len(), digests.len()], [STEPS; 2]);
        let (mut batch, mut worst): (usize, f64) = (0, 0.0);
        for (step, expected) in losses.iter().enumerate() {
            let report = trainer.step(|generator| {
                batch += 1;
                loss(batch - 1, generator)
            });
            let found = report.unwrap().loss;
            worst = worst.max((found / expected - 1.0).abs());
            assert!(worst < 1e-4, "{name}, step {step}: {found} and {expected}");
            check_digest(&format!("{name}, step {step}"), &trainer, digests[step]);
        }
        let ends = self.check_weights(name, "end", &trainer);
        if let Some(ema) = &trainer.ema {
            ema.copy_to(&trainer.groups).unwrap();
            self.check_weights(name, "average", &trainer);
        }
        println!("{name}: {ends} weights, losses within {worst:.1e}");
    }

    fn check_weights(&self, name: &str, end: &str, trainer: &Trainer) -> usize {
        let every = self.settings["every"].as_u64().unwrap_or(1) as usize;
        let mut count = 0;
        for Parameter { name: parameter, var } in parameters(&trainer.groups) {
            let kept: Vec<f32> = values(var).into_iter().step_by(every).map(|x| x as f32).collect();
            let expected = self.fixture.get(&format!("{name}/{end}/{parameter}")).flatten_all().unwrap();
            assert_close(parameter, &Tensor::new(kept, &Device::Cpu).unwrap(), &expected, 1e-5);
            count += 1;
        }
        let prefix = format!("{name}/{end}/");
        assert_eq!(
            self.fixture.names().iter().filter(|key| key.starts_with(&prefix)).count(),
            count,
            "{name}"
        );
        count
    }
}

/// Fails where the length of all weights together is not the reference's after this step.
pub(crate) fn check_digest(step: &str, trainer: &Trainer, expected: f64) {
    let all = parameters(&trainer.groups).flat_map(|parameter| values(&parameter.var));
    let length = all.map(|weight| weight * weight).sum::<f64>().sqrt();
    assert!(
        (length / expected - 1.0).abs() < 1e-5,
        "{step}: weights of length {length}, expected {expected}"
    );
}

fn trainer(case: &Value, parameters: Vec<Parameter>, learning_rate: f64) -> Trainer {
    let groups = vec![ParameterGroup { parameters, learning_rate, weight_decay: 1e-2 }];
    let schedule = LrSchedule::new(
        case["lr_scheduler"].as_str().unwrap().parse().unwrap(),
        LrScheduleOptions {
            num_warmup_steps: case["warmup"].as_u64().unwrap_or(0) as usize,
            num_training_steps: STEPS,
            ..Default::default()
        },
    );
    let options = TrainerOptions {
        gradient_accumulation_steps: case["accumulation"].as_u64().unwrap_or(1) as usize,
        max_grad_norm: Some(case["max_grad_norm"].as_f64().unwrap_or(1.0)),
        ..Default::default()
    };
    let ema = case["ema"].as_bool().map(|_| EmaModel::new(&groups, EmaConfig::default()).unwrap());
    let optimizer = Box::new(AdamW::new(AdamWConfig::default()).unwrap());
    Trainer::new(groups, optimizer, schedule.unwrap(), ema, options, TorchGenerator::new(42)).unwrap()
}
