use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_diffusers_convert::ShardIndex;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use crate::hub_download::Downloader;
use crate::pipeline_files::{component_config, component_files, pipeline_files};
use crate::weights::join;
use crate::{Error, HubId, MODEL_INDEX, ModelIndex, Repository, Result};

/// How long the hub may take to answer before it counts as not reachable, as in the Python library.
const DEFAULT_TIMEOUT_SECONDS: u64 = 10;
/// A longer wait means none at all, and would not fit the clock.
const MAX_TIMEOUT_SECONDS: u64 = 24 * 60 * 60;

/// Where a download stands; passed to the callback each time that more has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// The file, for instance `unet/diffusion_pytorch_model.safetensors`.
    pub file: &'a str,
    /// Its bytes that are here.
    pub received: u64,
    /// Its bytes in all.
    pub size: u64,
    /// Which of the files this is, from 1.
    pub number: usize,
    /// How many files are downloaded, as far as that is known.
    pub files: usize,
}

/// The Hugging Face hub with its cache, shared with the Python libraries.
#[derive(Debug, Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    /// How long to wait for the hub's first answer.
    timeout: Duration,
    /// Components of pipelines that are not wanted.
    left_out: Vec<String>,
}

impl Hub {
    /// The hub as the environment says, with the variables of the Python library: `HF_HOME`, `HF_HUB_CACHE` and `XDG_CACHE_HOME` for
    /// the cache (`~/.cache/huggingface/hub`), `HF_TOKEN`, `HF_TOKEN_PATH` and the token that `hf auth login` has saved, `HF_ENDPOINT`,
    /// `HF_HUB_OFFLINE` for the cache alone, and `HF_HUB_ETAG_TIMEOUT` for the seconds that the hub may take to answer (10).
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), with another source of variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let home = || std::env::home_dir().unwrap_or_default();
        let cache_home = || variable("XDG_CACHE_HOME").map_or_else(|| home().join(".cache"), PathBuf::from);
        let hf_home = variable("HF_HOME").map_or_else(|| cache_home().join("huggingface"), PathBuf::from);
        let cache = variable("HF_HUB_CACHE").map_or_else(|| hf_home.join("hub"), PathBuf::from);
        let token_path = variable("HF_TOKEN_PATH").map_or_else(|| hf_home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN")
            .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| fs::read_to_string(token_path).ok())
            .map(|token| token.trim().to_string())
            .filter(|token| !token.is_empty());
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_string());
        let is_true = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        let offline =
            variable("HF_HUB_OFFLINE").or_else(|| variable("TRANSFORMERS_OFFLINE")).is_some_and(is_true);
        let timeout = variable("HF_HUB_ETAG_TIMEOUT").and_then(|seconds| seconds.parse().ok());
        let timeout = timeout.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT_SECONDS);
        let timeout = Duration::from_secs(timeout.min(MAX_TIMEOUT_SECONDS));
        // Links within the cache are relative, whatever the working directory is later.
        let cache = std::path::absolute(&cache).unwrap_or(cache);
        Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_string(),
            token,
            offline,
            timeout,
            left_out: Vec::new(),
        }
    }

    /// The hub without the `components` of pipelines, such as `safety_checker`: they are not downloaded, nor missed in the cache.
    pub fn without(mut self, components: &[&str]) -> Self {
        self.left_out.extend(components.iter().map(|component| component.to_string()));
        self
    }

    fn folder(&self, folder: &Path, name: &str) -> Result<Repository> {
        let left_out: Vec<&str> = self.left_out.iter().map(String::as_str).collect();
        Ok(Repository::folder(folder)?.with_name(name).without(&left_out))
    }

    /// The cache's folder.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The address of the hub.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Whether only the cache is used.
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The pipeline `id`: downloads what is not in the cache yet and returns its folder there.
    ///
    /// Only what loading needs is downloaded: model_index.json and, of each component that is loaded, its config and the safetensors of
    /// `variant`. `progress` is called as bytes come. Where the hub cannot be reached, a pipeline that is in the cache is
    /// loaded from there, with a warning in the log.
    ///
    /// # Errors
    /// When the model is unknown or not accessible, lacks a file, or the hub cannot be reached and the cache is not complete.
    pub fn pipeline(
        &self,
        id: &HubId,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Repository> {
        self.get(Wanted::Pipeline, id, variant, progress)
    }

    /// The repository `id` of one model alone, as ControlNets are published: as [`pipeline`](Self::pipeline), but what is needed is the config and the
    /// weights at its top.
    ///
    /// # Errors
    /// Those of [`pipeline`](Self::pipeline).
    pub fn component(
        &self,
        id: &HubId,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Repository> {
        self.get(Wanted::Component, id, variant, progress)
    }

    fn get(
        &self,
        wanted: Wanted,
        id: &HubId,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Repository> {
        if self.offline {
            let reason = "HF_HUB_OFFLINE is set, so nothing is downloaded".to_string();
            return self.cached(wanted, id, variant, reason);
        }
        let info = match self.info(&self.api(id)?, id) {
            Ok(info) => info,
            Err(error) if is_unreachable(&error) => {
                let reason = format!("{} cannot be reached ({error})", self.endpoint);
                let repository = self.cached(wanted, id, variant, reason)?;
                tracing::warn!("{} cannot be reached: {id} is loaded from the cache", self.endpoint);
                return Ok(repository);
            }
            Err(error) => return Err(self.refused(id, &error)),
        };
        check_commit(id, &info.sha)?;
        self.download(wanted, id, &info, variant, progress)
    }

    /// What the hub says of the model: the first question, so a hub that takes connections and never answers shows here.
    fn info(&self, api: &Api, id: &HubId) -> Result<RepoInfo, ApiError> {
        let timeout = Some(self.timeout);
        let request = api.repo(model(id, id.revision())).info_request();
        let request = request
            .config()
            .timeout_resolve(timeout)
            .timeout_connect(timeout)
            .timeout_recv_response(timeout)
            .timeout_per_read(timeout)
            .build();
        let mut response = request.call().map_err(Box::new)?;
        Ok(response.body_mut().read_json().map_err(Box::new)?)
    }

    fn download(
        &self,
        wanted: Wanted,
        id: &HubId,
        info: &RepoInfo,
        variant: Option<&str>,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<Repository> {
        let name = id.to_string();
        let files: BTreeSet<String> = info.siblings.iter().map(|file| file.rfilename.clone()).collect();
        if wanted == Wanted::Pipeline && !files.contains(MODEL_INDEX) {
            return Err(Error::MissingModelIndex { repository: name, found: what_the_hub_has(&files) });
        }
        // By commit, so that all files belong together even when the branch moves on meanwhile.
        let commit = model(id, &info.sha);
        let cache = Cache::new(self.cache.clone()).repo(commit.clone());
        let folder = cache.pointer_path(&info.sha);
        let mut downloader = Downloader::new(self.api(id)?, commit, cache, &info.sha, progress);
        let refused = |error: ApiError| self.refused(id, &error);
        let first = match wanted {
            Wanted::Pipeline => MODEL_INDEX.to_string(),
            Wanted::Component => component_config(&name, &files)?,
        };
        downloader.fetch(&[first]).map_err(refused)?;
        let repository = self.folder(&folder, &name)?;
        let needed = wanted.files(&repository, &files, variant)?;
        // Configs and indices first: they are small and can show that the rest is not needed.
        let (weights, small): (Vec<_>, Vec<_>) =
            needed.into_iter().partition(|path| path.ends_with(".safetensors"));
        downloader.fetch(&small).map_err(refused)?;
        let mut large = weights;
        for path in small.iter().filter(|path| is_shard_index(path)) {
            large.extend(shards(&repository, path)?);
        }
        downloader.fetch(&large).map_err(refused)?;
        // Last, so that a branch in the cache always means a whole pipeline.
        let reference = Cache::new(self.cache.clone()).repo(model(id, id.revision()));
        reference
            .create_ref(&info.sha)
            .map_err(|source| Error::Io { file: self.cache.display().to_string(), source })?;
        Ok(repository)
    }

    /// What is wanted as the cache has it; `reason` says why the hub was not asked.
    fn cached(
        &self,
        wanted: Wanted,
        id: &HubId,
        variant: Option<&str>,
        reason: String,
    ) -> Result<Repository> {
        let not_complete = |missing: String| Error::NotInCache {
            id: id.to_string(),
            cache: self.cache.display().to_string(),
            missing,
            reason: reason.clone(),
        };
        let folder = self.snapshot(id).ok_or_else(|| not_complete("it is not there".to_string()))?;
        let repository = self.folder(&folder, &id.to_string())?;
        let complete = || -> Result<()> {
            for path in wanted.files(&repository, &local_files(&repository), variant)? {
                let shards = if is_shard_index(&path) { shards(&repository, &path)? } else { Vec::new() };
                if let Some(path) = shards.into_iter().find(|shard| !repository.exists(shard)) {
                    return Err(Error::MissingFile { repository: repository.name().to_string(), path });
                }
            }
            Ok(())
        };
        match complete() {
            Ok(()) => Ok(repository),
            Err(error) => Err(not_complete(error.to_string())),
        }
    }

    /// The folder of the cache that the revision stands for.
    fn snapshot(&self, id: &HubId) -> Option<PathBuf> {
        let folder = self.cache.join(model(id, id.revision()).folder_name());
        let commit = fs::read_to_string(folder.join("refs").join(id.revision())).ok();
        let commit = commit.or_else(|| id.is_commit().then(|| id.revision().to_string()))?;
        Some(folder.join("snapshots").join(commit.trim())).filter(|folder| folder.is_dir())
    }

    fn api(&self, id: &HubId) -> Result<Api> {
        ApiBuilder::from_cache(Cache::new(self.cache.clone()))
            .with_endpoint(self.endpoint.clone())
            .with_token(self.token.clone())
            .with_progress(false)
            .build()
            .map_err(|error| Error::Hub { id: id.to_string(), message: error.to_string() })
    }

    fn refused(&self, id: &HubId, error: &ApiError) -> Error {
        let message = match (status(error), &self.token) {
            (Some(401), None) => format!(
                "{} has no such model, or only for members: check the name, or set HF_TOKEN to your access token",
                self.endpoint
            ),
            (Some(401), Some(_)) => {
                format!("{} does not accept the access token: check the name and HF_TOKEN", self.endpoint)
            }
            (Some(403), _) => format!(
                "the access token does not allow it; accept the model's terms at {}/{} and see that HF_TOKEN may read it",
                self.endpoint,
                id.repository()
            ),
            (Some(404), _) => {
                format!(
                    "{} has no such model, revision {} or file: check the name",
                    self.endpoint,
                    id.revision()
                )
            }
            _ => format!("could not be downloaded from {}: {error}", self.endpoint),
        };
        Error::Hub { id: id.to_string(), message }
    }
}

/// What of a repository is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// The components that its model_index.json names.
    Pipeline,
    /// The model at its top.
    Component,
}

impl Wanted {
    /// The paths of what is needed, out of all `files`; shards are not in it, only their index.
    fn files(
        self,
        repository: &Repository,
        files: &BTreeSet<String>,
        variant: Option<&str>,
    ) -> Result<Vec<String>> {
        match self {
            Self::Pipeline => {
                pipeline_files(repository.name(), files, &ModelIndex::load(repository)?, variant)
            }
            Self::Component => component_files(repository.name(), files, variant),
        }
    }
}

fn model(id: &HubId, revision: &str) -> Repo {
    Repo::with_revision(id.repository().to_string(), RepoType::Model, revision.to_string())
}

/// The HTTP status that the hub has answered with.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether nothing that looks like the hub has answered.
fn is_unreachable(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => status >= 500,
            _ => true,
        },
        _ => false,
    }
}

/// The hub names the folder of the cache: it must be a commit and not a path.
fn check_commit(id: &HubId, commit: &str) -> Result<()> {
    if !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Ok(());
    }
    Err(Error::Hub {
        id: id.to_string(),
        message: format!("the hub calls the commit {commit:?}, which is none"),
    })
}

fn is_shard_index(path: &str) -> bool {
    path.contains(".safetensors.") && path.ends_with(".json")
}

/// The paths of the shards that the index at `path` lists.
fn shards(repository: &Repository, path: &str) -> Result<Vec<String>> {
    let index = ShardIndex::parse(repository.display(path), &repository.read(path)?)?;
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Ok(index.shards().into_iter().map(|shard| join(folder, shard)).collect())
}

/// All files at the top and one folder down, which is as deep as a pipeline goes.
fn local_files(repository: &Repository) -> BTreeSet<String> {
    let mut files = BTreeSet::new();
    for name in repository.list("") {
        files.extend(repository.list(&name).into_iter().map(|inside| join(&name, &inside)));
        files.insert(name);
    }
    files.retain(|path| repository.exists(path));
    files
}

fn what_the_hub_has(files: &BTreeSet<String>) -> String {
    let is_checkpoint =
        |file: &&String| !file.contains('/') && (file.ends_with(".safetensors") || file.ends_with(".ckpt"));
    let checkpoint = files.iter().find(is_checkpoint);
    match checkpoint {
        Some(file) => format!("it has {file}: download that and use `diffuse convert` on it"),
        None => "it has no checkpoint either".to_string(),
    }
}
