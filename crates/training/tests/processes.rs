//! Several processes take the steps of one. Here they are threads, which need no MPI; `diffuse train` is tested with MPI itself.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::rc::Rc;
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, Var};
use candle_diffusers_kernels::linear;
use candle_diffusers_loaders::{LoadOptions, Repository};
use candle_diffusers_models::UNet2DModel;
use candle_diffusers_pipelines::{StableDiffusionPipeline, TextEncoders};
use candle_diffusers_schedulers::TorchGenerator;
use candle_diffusers_test_support::{numbers, values};
use candle_diffusers_training::recipes::{
    ControlNetDenoising, CustomDiffusion, CustomDiffusionDenoising, Denoising, DenoisingOptions, Example,
    TextualInversionOptions, TrainedControlNet, TrainedProjections, TrainedToken, UnconditionalDenoising,
    UnconditionalOptions,
};
use candle_diffusers_training::{
    AdamW, AdamWConfig, BatchShare, Error, GradientBuckets, LoraConfig, LossWeighting, LrSchedule,
    LrScheduleName, NoiseOptions, OneProcess, Optimizer, Parameter, ParameterGroup, Processes, RandomSource,
    Result, Sgd, SgdConfig, TEXT_ENCODER_TARGETS, TrainedLora, Trainer, TrainerOptions, UNET_TARGETS,
    parameters, trainable_unet, trainable_unet_2d,
};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/text_to_image/sd1");
const INPAINTING_UNET: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/inpainting/sd1_unet");
const UNCONDITIONAL: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/tests/parity/unconditional/ddpm");
const STEPS: usize = 4;
const ACCUMULATION: usize = 2;

/// Processes that are threads.
#[derive(Clone, Debug)]
struct Threads {
    rank: usize,
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
    barrier: Arc<Barrier>,
    summed: Arc<Summed>,
}

/// What has been summed by one process so far.
#[derive(Debug, Default)]
struct Summed {
    buckets: Mutex<usize>,
    grew: Condvar,
    /// The values of each call.
    values: Mutex<Vec<usize>>,
}

impl Threads {
    fn all(size: usize) -> Vec<Self> {
        let (messages, barrier) =
            (Arc::new(Mutex::new(vec![Vec::new(); size])), Arc::new(Barrier::new(size)));
        let one = |rank| Self {
            rank,
            messages: messages.clone(),
            barrier: barrier.clone(),
            summed: Arc::default(),
        };
        (0..size).map(one).collect()
    }
}

impl Processes for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.messages.lock().unwrap().len()
    }

    fn gather(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.messages.lock().unwrap()[self.rank] = message.to_vec();
        self.barrier.wait();
        let all = self.messages.lock().unwrap().clone();
        self.barrier.wait();
        Ok(all)
    }

    fn sum_during(&self, work: &mut dyn FnMut(), buckets: &mut dyn GradientBuckets) -> Result<()> {
        thread::scope(|threads| {
            let sums = threads.spawn(|| {
                let mut count = 0;
                while let Some(values) = buckets.next()? {
                    count += values.elem_count();
                    buckets.put(self.sum(&values)?);
                    *self.summed.buckets.lock().unwrap() += 1;
                    self.summed.grew.notify_all();
                }
                self.summed.values.lock().unwrap().push(count);
                Ok(())
            });
            work();
            sums.join().unwrap()
        })
    }
}

impl Threads {
    fn sum(&self, values: &Tensor) -> Result<Tensor> {
        let own: Vec<u8> = values.to_vec1::<f32>()?.into_iter().flat_map(f32::to_le_bytes).collect();
        let mut sum = vec![0f32; values.elem_count()];
        for values in self.gather(&own)? {
            let values = values.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        Ok(Tensor::from_vec(sum, values.elem_count(), &Device::Cpu)?)
    }
}

/// What `work` gives in each of `size` processes.
fn in_processes<T: Send + 'static>(
    size: usize,
    work: impl Fn(Rc<Threads>) -> T + Send + Clone + 'static,
) -> Vec<T> {
    let start = |threads: Threads| {
        let work = work.clone();
        thread::spawn(move || work(Rc::new(threads)))
    };
    let started: Vec<_> = Threads::all(size).into_iter().map(start).collect();
    started.into_iter().map(|thread| thread.join().unwrap()).collect()
}

#[derive(Clone, Copy, Debug)]
enum Taught {
    /// A LoRA with everything random that there is.
    Lora,
    WholeUNet,
    /// A model that paints into pictures, where random masks are.
    Inpainting,
    /// By masks, which are brighter in one process than in the other.
    Masked,
    /// A new word, which only some captions have.
    Word,
    /// A new word and projections, with pictures of a class.
    CustomDiffusion,
    /// Beside a model, by pictures that steer.
    ControlNet,
    /// A model that paints without a text.
    Unconditional,
}

impl Taught {
    fn options(self) -> DenoisingOptions {
        match self {
            Self::WholeUNet | Self::Inpainting | Self::ControlNet | Self::Unconditional => {
                DenoisingOptions::default()
            }
            Self::Masked => DenoisingOptions { mask_temperature: Some(1.3), ..Default::default() },
            Self::Word => DenoisingOptions { train_text_encoder: true, ..Default::default() },
            Self::CustomDiffusion => DenoisingOptions {
                prior_loss_weight: Some(0.7),
                train_text_encoder: true,
                ..Default::default()
            },
            Self::Lora => DenoisingOptions {
                noise: NoiseOptions { noise_offset: 0.1, input_perturbation: 0.1 },
                weighting: LossWeighting::MinSnr { gamma: 5.0 },
                prior_loss_weight: Some(0.7),
                caption_dropout: 0.3,
                train_text_encoder: true,
                ..Default::default()
            },
        }
    }

    fn parts(self) -> usize {
        1 + usize::from(self.options().prior_loss_weight.is_some())
    }
}

/// The word that is learned.
fn word() -> TextualInversionOptions {
    TextualInversionOptions {
        placeholder_token: "<new>".to_string(),
        initializer_token: "circle".to_string(),
        num_vectors: 2,
    }
}

/// What a picture comes with, from 0 to 1: its mask, or what steers.
fn other(place: usize) -> Tensor {
    let brightness = [1.0, 0.8, 0.6, 0.4][place % 4];
    (numbers(&[3, 32, 32], 1000 + place as u64).abs().unwrap() * brightness).unwrap()
}

/// The pictures of this process in a batch of four of each kind.
fn examples(batch: usize, parts: usize, share: BatchShare) -> Vec<Example> {
    let own = 4 / share.processes;
    let places = (0..parts)
        .flat_map(|part| (0..own).map(move |row| (batch * parts + part) * 4 + share.process * own + row));
    let example = |place: usize| Example {
        pixel_values: numbers(&[3, 32, 32], place as u64).clamp(-1.0, 1.0).unwrap(),
        // Of two processes the second one has none with the word.
        caption: if place % 4 < 2 { format!("<new> {place}") } else { format!("picture {place}") },
        original_size: (32, 32),
        crop_top_left: (0, 0),
        key: Some(place as u64),
        others: vec![other(place)],
        area: None,
    };
    places.map(example).collect()
}

/// What is taught, and what may stand beside it.
struct Models {
    stable_diffusion: StableDiffusionPipeline,
    loras: Vec<TrainedLora>,
    controlnet: Option<TrainedControlNet>,
    unconditional: Option<UNet2DModel>,
}

/// The models, and what of them is trained.
fn prepare(taught: Taught, generator: &mut TorchGenerator) -> (Models, Vec<Parameter>) {
    let (repository, load) = (Repository::folder(MODEL).unwrap(), LoadOptions::default());
    let stable_diffusion = StableDiffusionPipeline::load(&repository, &load).unwrap();
    let mut models = Models { stable_diffusion, loras: Vec::new(), controlnet: None, unconditional: None };
    let pipeline = &mut models.stable_diffusion;
    let trained = match taught {
        Taught::WholeUNet | Taught::Masked => {
            let whole = trainable_unet(&repository, "unet", &load).unwrap();
            pipeline.unet = whole.model;
            whole.parameters
        }
        Taught::Inpainting => {
            let unet = Repository::folder(INPAINTING_UNET).unwrap();
            let whole = trainable_unet(&unet, "", &load).unwrap();
            pipeline.unet = whole.model;
            whole.parameters
        }
        Taught::Lora => {
            let config = |targets: &[&str]| LoraConfig { dropout: 0.2, ..LoraConfig::new(2, targets) };
            let TextEncoders::Clip(clip) = &pipeline.text_encoders else { panic!("not a CLIP encoder") };
            let encoder = &clip.text_encoder;
            let (unet, text) = (config(&UNET_TARGETS), config(&TEXT_ENCODER_TARGETS));
            models.loras.push(TrainedLora::attach(&pipeline.unet, "unet", &unet, generator).unwrap());
            models.loras.push(TrainedLora::attach(encoder, "text_encoder", &text, generator).unwrap());
            models.loras.iter().flat_map(TrainedLora::parameters).collect()
        }
        Taught::Word => TrainedToken::attach(pipeline, &word(), generator).unwrap().parameters(),
        Taught::CustomDiffusion => {
            let projections = TrainedProjections::KeysAndValues;
            CustomDiffusion::attach(pipeline, &[word()], projections, generator).unwrap().parameters()
        }
        Taught::ControlNet => {
            let new = TrainedControlNet::from_unet(&repository, &load, generator.clone()).unwrap();
            models.controlnet.insert(new).parameters.clone()
        }
        Taught::Unconditional => {
            let repository = Repository::folder(UNCONDITIONAL).unwrap();
            let whole = trainable_unet_2d(&repository, "unet", &load).unwrap();
            models.unconditional = Some(whole.model);
            whole.parameters
        }
    };
    (models, trained)
}

/// What computes the loss of a batch.
type Teacher<'a> = Box<dyn Fn(&[Example], &mut dyn RandomSource) -> Result<Tensor> + 'a>;

fn teacher(taught: Taught, models: &Models) -> Teacher<'_> {
    let (pipeline, options) = (&models.stable_diffusion, taught.options());
    match (taught, &models.controlnet, &models.unconditional) {
        (Taught::CustomDiffusion, ..) => {
            let denoising = CustomDiffusionDenoising::new(pipeline, options).unwrap();
            Box::new(move |examples, random| denoising.loss(examples, random))
        }
        (_, Some(trained), _) => {
            let denoising = ControlNetDenoising::new(pipeline, &trained.net, options).unwrap();
            Box::new(move |examples, random| denoising.loss(examples, random))
        }
        (_, _, Some(unet)) => {
            let denoising = UnconditionalDenoising::new(unet, &UnconditionalOptions::default()).unwrap();
            Box::new(move |examples, random| {
                let pictures: Vec<&Tensor> = examples.iter().map(|example| &example.pixel_values).collect();
                denoising.loss(&Tensor::stack(&pictures, 0)?, random)
            })
        }
        _ => {
            let denoising = Denoising::new(pipeline, options).unwrap();
            Box::new(move |examples, random| denoising.loss(examples, random))
        }
    }
}

/// Losses and weights of some steps.
fn train(taught: Taught, processes: Rc<dyn Processes>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut generator = TorchGenerator::new(3);
    let (models, trained) = prepare(taught, &mut generator);
    let (optimizer, learning_rate): (Box<dyn Optimizer>, f64) = match taught {
        // Some of their weights change no loss: their gradients are rounding alone, which AdamW makes steps of.
        Taught::ControlNet | Taught::Unconditional => {
            (Box::new(Sgd::new(SgdConfig::default()).unwrap()), 0.1)
        }
        _ => (Box::new(AdamW::new(AdamWConfig::default()).unwrap()), 1e-3),
    };
    let groups = vec![ParameterGroup { parameters: trained, learning_rate, weight_decay: 1e-2 }];
    let options = TrainerOptions {
        gradient_accumulation_steps: ACCUMULATION,
        max_grad_norm: Some(0.5),
        ..Default::default()
    };
    let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default()).unwrap();
    let mut trainer = Trainer::new(groups, optimizer, schedule, None, options, generator).unwrap();
    trainer.share_batches(processes, taught.parts());
    let share = trainer.batch_share();
    let teacher = teacher(taught, &models);
    let (mut batch, mut losses) = (0, Vec::new());
    for step in 0..STEPS {
        models.loras.iter().for_each(|lora| lora.begin_step(step as u64, share));
        let report = trainer.step(|random| {
            batch += 1;
            teacher(&examples(batch, taught.parts(), share), random)
        });
        losses.push(report.unwrap().loss);
    }
    (losses, parameters(&trainer.groups).map(|parameter| values(&parameter.var)).collect())
}

/// Compares what one process learns to what several do.
fn compare(taught: Taught, sizes: &[usize]) {
    let (losses, weights) = train(taught, Rc::new(OneProcess));
    // Sums over pictures round more than those over latents, which have fewer numbers.
    let nearness = if matches!(taught, Taught::Unconditional) { 1e-5 } else { 1e-6 };
    for &size in sizes {
        let all = in_processes(size, move |processes| train(taught, processes));
        assert!(all.iter().all(|one| *one == all[0]), "the processes drift apart");
        let (own_losses, own_weights) = &all[0];
        for (own, loss) in own_losses.iter().zip(&losses) {
            assert!(
                (own - loss).abs() < nearness * loss,
                "{taught:?} by {size}: {own_losses:?}, not {losses:?}"
            );
        }
        let distance = |(own, weights): (&Vec<f64>, &Vec<f64>)| {
            own.iter().zip(weights).map(|(own, weight)| (own - weight).abs()).fold(0.0, f64::max)
        };
        let furthest = own_weights.iter().zip(&weights).map(distance).fold(0.0, f64::max);
        println!("{taught:?} by {size} processes: weights within {furthest:.1e} after {STEPS} steps");
        assert!(furthest < 1e-5, "{taught:?} by {size}: {furthest}");
    }
}

#[test]
fn processes_take_the_steps_of_one() {
    for taught in [Taught::Lora, Taught::WholeUNet, Taught::Inpainting, Taught::Masked] {
        compare(taught, &[2, 4]);
    }
}

#[test]
fn processes_take_the_steps_of_one_in_other_recipes() {
    for taught in [Taught::Word, Taught::CustomDiffusion, Taught::ControlNet, Taught::Unconditional] {
        compare(taught, &[2]);
    }
}

/// A trainer of two parameters, of which the second takes part in the loss of one process only, and the third in none.
fn small_trainer(processes: Rc<dyn Processes>) -> (Trainer, Vec<candle_core::Var>) {
    let vars: Vec<_> =
        (0..3).map(|seed| candle_core::Var::from_tensor(&numbers(&[5], seed)).unwrap()).collect();
    let parameter =
        |(index, var): (usize, &candle_core::Var)| Parameter { name: index.to_string(), var: var.clone() };
    let parameters = vars.iter().enumerate().map(parameter).collect();
    let groups = vec![ParameterGroup { parameters, learning_rate: 0.1, weight_decay: 0.1 }];
    let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default()).unwrap();
    let optimizer = Box::new(AdamW::new(AdamWConfig::default()).unwrap());
    let generator = TorchGenerator::new(0);
    let mut trainer =
        Trainer::new(groups, optimizer, schedule, None, TrainerOptions::default(), generator).unwrap();
    trainer.share_batches(processes, 1);
    (trainer, vars)
}

#[test]
fn a_parameter_that_one_process_has_no_gradient_of_moves_in_all() {
    let all = in_processes(2, |processes| {
        let rank = processes.rank();
        let (mut trainer, vars) = small_trainer(processes);
        let before = values(&vars[2]);
        let step = trainer.step(|_| {
            let first = vars[0].sqr()?.sum_all()?;
            Ok(if rank == 1 { (first + vars[1].sqr()?.sum_all()?)? } else { first })
        });
        assert_eq!(values(&vars[2]), before, "what has no gradient at all must not decay");
        (step.unwrap(), vars.iter().map(|var| values(var)).collect::<Vec<_>>())
    });
    assert_eq!(all[0], all[1]);
    assert!(all[0].1[1] != values(&numbers(&[5], 1)));
}

/// Passes on what it is given, and holds the backward pass up until so many buckets have been summed.
struct Gate {
    summed: Arc<Summed>,
    buckets: usize,
}

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let buckets = self.summed.buckets.lock().unwrap();
        let wait = Duration::from_secs(20);
        let (buckets, _) =
            self.summed.grew.wait_timeout_while(buckets, wait, |buckets| *buckets < self.buckets).unwrap();
        if *buckets < self.buckets {
            candle_core::bail!("{} of {} buckets have been summed", *buckets, self.buckets);
        }
        Ok(Some(gradient.clone()))
    }
}

#[test]
fn gradients_of_later_layers_are_summed_before_those_of_earlier_ones_are_computed() {
    const STEPS: usize = 3;
    let all = in_processes(2, |processes| {
        // 256 kB each, so that they travel alone.
        let layers: Vec<Var> =
            (0..4).map(|seed| Var::from_tensor(&numbers(&[256, 256], seed)).unwrap()).collect();
        let parameter = |(index, var): (usize, &Var)| Parameter { name: index.to_string(), var: var.clone() };
        let parameters = layers.iter().enumerate().map(parameter).collect();
        let groups = vec![ParameterGroup { parameters, learning_rate: 0.1, weight_decay: 0.0 }];
        let schedule = LrSchedule::new(LrScheduleName::Constant, Default::default()).unwrap();
        let optimizer = Box::new(Sgd::new(SgdConfig::default()).unwrap());
        let (options, generator) = (TrainerOptions::default(), TorchGenerator::new(0));
        let mut trainer = Trainer::new(groups, optimizer, schedule, None, options, generator).unwrap();
        trainer.share_batches(processes.clone(), 1);
        for step in 0..STEPS {
            // The first step learns in which order gradients come. In the others the second layer's backward waits for the sums of the two after it.
            let buckets = if step == 0 { 0 } else { step * layers.len() + 2 };
            let x = numbers(&[1, 256], 10 + processes.rank() as u64);
            let loss = || {
                let x = linear(&linear(&x, &layers[0], None)?, &layers[1], None)?;
                let x = x.apply_op1(Gate { summed: processes.summed.clone(), buckets })?;
                linear(&linear(&x, &layers[2], None)?, &layers[3], None)?.sqr()?.mean_all()
            };
            trainer.step(|_| Ok(loss()?)).unwrap();
        }
        layers.iter().map(|layer| values(layer)).collect::<Vec<_>>()
    });
    assert_eq!(all[0], all[1]);
}

#[test]
fn no_gradient_of_whole_models_and_loras_is_left_for_the_end_of_the_backward_pass() {
    for taught in
        [Taught::WholeUNet, Taught::Inpainting, Taught::Unconditional, Taught::ControlNet, Taught::Lora]
    {
        let all = in_processes(2, move |processes| {
            train(taught, processes.clone());
            processes.summed.values.lock().unwrap().clone()
        });
        // Those of each step's backward pass, and those after it.
        let (early, late): (Vec<usize>, Vec<usize>) = all[0].chunks(2).map(|step| (step[0], step[1])).unzip();
        assert!(early.iter().all(|values| *values > 0), "{taught:?}: {early:?}");
        assert_eq!(late, [0; STEPS], "{taught:?}");
    }
}

#[test]
fn all_learn_that_one_has_failed() {
    let problems = in_processes(3, |processes| {
        let rank = processes.rank();
        let (mut trainer, vars) = small_trainer(processes.clone());
        loop {
            let step = trainer.steps_done();
            let error = match trainer.step(|_| match (rank, step) {
                (1, 2) => Ok((vars[0].sqr()?.sum_all()? * f64::NAN)?),
                _ => Ok(vars[0].sqr()?.sum_all()?),
            }) {
                Ok(_) => continue,
                Err(error @ Error::Process { .. }) => return error.to_string(),
                Err(error) => error,
            };
            assert_eq!((rank, step), (1, 2), "{error}");
            return processes.fail(&error.to_string()).unwrap().to_string();
        }
    });
    assert!(problems.iter().all(|problem| problem == &problems[0]), "{problems:?}");
    assert!(problems[0].starts_with("process 1: the loss of step 3 is NaN"), "{problems:?}");
}

#[test]
fn processes_that_begin_alike_have_one_digest() {
    let digest = |seed: Option<u64>| {
        let (mut trainer, vars) = small_trainer(Rc::new(OneProcess));
        match seed {
            Some(0) => vars[1].set(&numbers(&[5], 9)).unwrap(),
            Some(_) => trainer.generator = TorchGenerator::new(1),
            None => {}
        }
        trainer.digest().unwrap()
    };
    assert_eq!(digest(None), digest(None));
    assert!(digest(Some(0)) != digest(None) && digest(Some(1)) != digest(None));
}

#[test]
fn a_batch_that_cannot_be_shared_is_refused() {
    use candle_diffusers_schedulers::NoiseSource;
    let mut generator = TorchGenerator::new(0);
    let share = BatchShare { process: 0, processes: 2, parts: 2 };
    let mut random = candle_diffusers_training::ShareOfRandom { generator: &mut generator, share };
    let error = random.randn(&[3, 4], candle_core::DType::F32, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("a batch of 6 pictures has no 4 equal shares"), "{error}");
}
