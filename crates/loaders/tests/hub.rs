//! Pipelines from a hub: a small server on this machine that speaks the hub's paths.

// Clippy knows the test functions only, not what they call.
#![allow(clippy::unwrap_used)]
#![cfg(feature = "hub")]

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use candle_diffusers_loaders::{Download, Error, Hub, HubId, ModelIndex, Repository};
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const INDEX: &str = r#"{"_class_name":"StableDiffusionPipeline","unet":["diffusers","UNet2DConditionModel"],
    "image_encoder":["transformers","CLIPVisionModelWithProjection"],"scheduler":["diffusers","DDIMScheduler"],
    "tokenizer":["transformers","CLIPTokenizer"]}"#;

/// What the server has and how it behaves.
#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    token: Option<String>,
    /// How often sending this file still breaks off in the middle.
    breaks: HashMap<String, usize>,
    /// Files whose length is not said, so that breaking off looks like the end.
    without_length: HashSet<String>,
    requests: Vec<String>,
}

struct Server {
    state: Arc<Mutex<State>>,
    endpoint: String,
    home: TempDir,
}

impl Server {
    fn new() -> Self {
        let mut files = HashMap::new();
        for (path, contents) in [
            ("model_index.json", INDEX.as_bytes()),
            ("README.md", b"not needed"),
            ("v1-5.safetensors", b"not needed"),
            ("image_encoder/model.safetensors", b"not needed"),
            ("image_encoder/config.json", b"{}"),
            ("scheduler/scheduler_config.json", b"{}"),
            ("tokenizer/vocab.json", b"{}"),
            ("tokenizer/merges.txt", b"\n"),
            ("unet/config.json", b"{\"in_channels\":4}"),
            ("unet/diffusion_pytorch_model.bin", b"not needed"),
            ("unet/diffusion_pytorch_model.fp16.safetensors", b"half"),
        ] {
            files.insert(path.to_string(), contents.to_vec());
        }
        let weights: Vec<u8> = (0..300_000).map(|i| (i % 251) as u8).collect();
        files.insert("unet/diffusion_pytorch_model.safetensors".to_string(), weights);
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || answer(stream, &shared));
            }
        });
        Self { state, endpoint, home: tempfile::tempdir().unwrap() }
    }

    fn hub_with(&self, extra: &[(&str, &str)]) -> Hub {
        Hub::from_variables(|name| match name {
            "HF_HOME" => Some(self.home.path().display().to_string()),
            _ if extra.iter().any(|(known, _)| *known == name) => {
                extra.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
            }
            "HF_ENDPOINT" => Some(self.endpoint.clone()),
            _ => None,
        })
    }

    fn load(&self, id: &str, variant: Option<&str>, extra: &[(&str, &str)]) -> Result<Repository, Error> {
        self.hub_with(extra).pipeline(&id.parse().unwrap(), variant, &mut |_| {})
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// The files of the commit in the cache, relative to its folder.
    fn cached(&self) -> Vec<String> {
        let folder = self.home.path().join("hub/models--owner--model/snapshots").join(COMMIT);
        let mut files = Vec::new();
        collect(&folder, "", &mut files);
        files.sort();
        files
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{path}/"), files);
        } else {
            files.push(path);
        }
    }
}

/// One request and its answer; the connection is then closed.
fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_string();
    let headers: HashMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()))
        })
        .collect();
    let mut state = state.lock().unwrap();
    state.requests.push(path.clone());
    let wanted = state.token.as_ref().map(|token| format!("Bearer {token}"));
    if wanted.is_some() && headers.get("authorization") != wanted.as_ref() {
        return respond(&mut stream, "401 Unauthorized", "", b"Invalid credentials");
    }
    let info =
        ["main", "v1%2Fx", COMMIT].map(|revision| format!("/api/models/owner/model/revision/{revision}"));
    if info.contains(&path) {
        let siblings: Vec<_> =
            state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        return respond(&mut stream, "200 OK", "Content-Type: application/json\r\n", body.as_bytes());
    }
    let file = path.strip_prefix(&format!("/owner/model/resolve/{COMMIT}/")).map(str::to_string);
    let Some((file, contents)) = file.and_then(|file| Some((file.clone(), state.files.get(&file)?.clone())))
    else {
        return respond(&mut stream, "404 Not Found", "", b"Entry not found");
    };
    send_file(
        &mut stream,
        &mut state,
        &file,
        &contents,
        headers.get("range").map_or("bytes=0-", |range| range),
    );
}

fn send_file(stream: &mut TcpStream, state: &mut State, file: &str, contents: &[u8], range: &str) {
    let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let first: usize = first.parse().unwrap();
    let end = last.parse().map_or(contents.len(), |last: usize| last + 1).min(contents.len());
    if first >= end {
        return respond(stream, "416 Range Not Satisfiable", "", b"");
    }
    let etag = format!("{:x}-{}", contents.len(), file.replace(['/', '.', '_'], "-"));
    let mut headers = format!(
        "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {first}-{}/{}\r\n",
        end - 1,
        contents.len()
    );
    let body = &contents[first..end];
    let left = state.breaks.get_mut(file).filter(|left| **left > 0 && body.len() > 1);
    let half = left.map(|left| *left -= 1).map(|()| body.len() / 2);
    if state.without_length.contains(file) {
        write!(stream, "HTTP/1.1 206 Partial Content\r\n{headers}Connection: close\r\n\r\n").unwrap();
    } else {
        headers += &format!("Content-Length: {}\r\n", body.len());
        write!(stream, "HTTP/1.1 206 Partial Content\r\n{headers}Connection: close\r\n\r\n").unwrap();
    }
    stream.write_all(&body[..half.unwrap_or(body.len())]).unwrap();
}

fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")
        .unwrap();
    stream.write_all(body).unwrap();
}

const NEEDED: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
];

#[track_caller]
fn assert_says<T>(result: Result<T, Error>, parts: &[&str]) {
    let message = result.err().expect("should fail").to_string();
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn downloads_what_is_needed_once_and_says_how_far_it_is() {
    let server = Server::new();
    let mut seen: Vec<(String, u64, u64, usize, usize)> = Vec::new();
    let mut progress =
        |d: Download<'_>| seen.push((d.file.to_string(), d.received, d.size, d.number, d.files));
    let id: HubId = "owner/model".parse().unwrap();
    let repository = server.hub_with(&[]).pipeline(&id, None, &mut progress).unwrap();
    assert_eq!(repository.name(), "owner/model");
    assert_eq!(server.cached(), NEEDED);
    let weights = repository.read("unet/diffusion_pytorch_model.safetensors").unwrap();
    assert_eq!(*weights, server.state.lock().unwrap().files["unet/diffusion_pytorch_model.safetensors"]);
    let last = seen.last().unwrap();
    assert_eq!(*last, ("unet/diffusion_pytorch_model.safetensors".to_string(), 300_000, 300_000, 6, 6));

    server.requests();
    server.load("owner/model", None, &[]).unwrap();
    assert_eq!(server.requests(), ["/api/models/owner/model/revision/main"]);
}

#[test]
fn a_safety_checker_is_downloaded_unless_it_is_left_out() {
    let server = Server::new();
    let index = INDEX.replace(
        "\"scheduler\"",
        "\"safety_checker\":[\"stable_diffusion\",\"StableDiffusionSafetyChecker\"],\
         \"feature_extractor\":[\"transformers\",\"CLIPImageProcessor\"],\"scheduler\"",
    );
    server.state.lock().unwrap().files.insert("model_index.json".into(), index.into_bytes());
    let load = |hub: Hub| hub.pipeline(&"owner/model".parse().unwrap(), None, &mut |_| {});
    assert_says(load(server.hub_with(&[])), &["owner/model", "feature_extractor/preprocessor_config.json"]);

    let without = ["safety_checker", "feature_extractor"];
    let repository = load(server.hub_with(&[]).without(&without)).unwrap();
    assert_eq!(server.cached(), NEEDED);
    let index = ModelIndex::load(&repository).unwrap();
    assert!(!index.components.keys().any(|name| without.contains(&name.as_str())));
    let offline = server.hub_with(&[("HF_HUB_OFFLINE", "1")]);
    assert!(load(offline.clone().without(&without)).is_ok());
    assert_says(load(offline), &["feature_extractor/preprocessor_config.json"]);

    let checker = ["safety_checker/config.json", "safety_checker/model.safetensors"];
    for path in checker.iter().chain(&["feature_extractor/preprocessor_config.json"]) {
        server.state.lock().unwrap().files.insert(path.to_string(), b"{}".to_vec());
    }
    load(server.hub_with(&[])).unwrap();
    for path in checker {
        assert!(server.cached().iter().any(|cached| cached == path), "{path}");
    }
}

#[test]
fn the_oldest_repositories_have_all_at_their_top() {
    let server = Server::new();
    let index = r#"{"_class_name":"DDPMPipeline","scheduler":["diffusers","DDPMScheduler"],"unet":["diffusers","UNet2DModel"]}"#;
    let needed =
        ["config.json", "diffusion_pytorch_model.safetensors", "model_index.json", "scheduler_config.json"];
    {
        let files = &mut server.state.lock().unwrap().files;
        files.retain(|path, _| !path.contains('/'));
        files.extend(needed.map(|path| (path.to_string(), b"{}".to_vec())));
        files.insert("model_index.json".into(), index.as_bytes().to_vec());
    }
    server.load("owner/model", None, &[]).unwrap();
    assert_eq!(server.cached(), needed);
    server.load("owner/model", None, &[("HF_HUB_OFFLINE", "1")]).unwrap();
}

#[test]
fn a_model_alone_is_its_config_and_weights() {
    let server = Server::new();
    let load = |id: &str, variant, extra: &[(&str, &str)]| {
        server.hub_with(extra).component(&id.parse().unwrap(), variant, &mut |_| {})
    };
    assert_says(load("owner/model", None, &[]), &["owner/model has no config.json"]);
    let (config, weights) = ("config.json", "diffusion_pytorch_model.safetensors");
    let files = [config, weights, "diffusion_pytorch_model.fp16.safetensors"];
    server.state.lock().unwrap().files.extend(files.map(|path| (path.to_string(), b"{}".to_vec())));
    let repository = load("owner/model", None, &[]).unwrap();
    assert_eq!((repository.name(), server.cached()), ("owner/model", vec![config.into(), weights.into()]));
    server.requests();
    let offline = [("HF_HUB_OFFLINE", "1")];
    assert!(load("owner/model", None, &offline).is_ok() && server.requests().is_empty());
    load("owner/model", Some("fp16"), &[]).unwrap();
    assert_eq!(server.cached().len(), 3);
    let other = load("owner/other", None, &offline);
    assert_says(other, &["owner/other", "it is not there", "HF_HUB_OFFLINE is set"]);
}

#[test]
fn the_cache_has_the_layout_of_the_python_library() {
    let server = Server::new();
    server.load("owner/model@v1/x", None, &[]).unwrap();
    let folder = server.home.path().join("hub/models--owner--model");
    assert_eq!(fs::read_to_string(folder.join("refs/v1/x")).unwrap(), COMMIT);
    #[cfg(unix)]
    for file in ["model_index.json", "unet/config.json"] {
        let link = fs::read_link(folder.join("snapshots").join(COMMIT).join(file)).unwrap();
        let up = if file.contains('/') { "../../../blobs" } else { "../../blobs" };
        assert!(link.starts_with(up), "{}", link.display());
    }
}

#[test]
fn a_variant_replaces_the_plain_weights() {
    let server = Server::new();
    server.load("owner/model", Some("fp16"), &[]).unwrap();
    let cached = server.cached();
    assert!(cached.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".to_string()));
    assert!(!cached.contains(&"unet/diffusion_pytorch_model.safetensors".to_string()));
    assert_says(server.load("owner/model", Some("bf16"), &[]), &["owner/model", "variant bf16"]);
}

#[test]
fn shards_are_found_through_their_index() {
    let server = Server::new();
    {
        let files = &mut server.state.lock().unwrap().files;
        files.remove("unet/diffusion_pytorch_model.safetensors");
        let index = br#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}}"#;
        files.insert("unet/diffusion_pytorch_model.safetensors.index.json".to_string(), index.to_vec());
        files.insert("unet/s-1.safetensors".to_string(), b"one".to_vec());
        files.insert("unet/s-2.safetensors".to_string(), b"two".to_vec());
    }
    let repository = server.load("owner/model", None, &[]).unwrap();
    assert!(repository.exists("unet/s-1.safetensors") && repository.exists("unet/s-2.safetensors"));
    server.load("owner/model", None, &[("HF_HUB_OFFLINE", "1")]).unwrap();
    fs::remove_file(repository.path().unwrap().join("unet/s-2.safetensors")).unwrap();
    assert_says(
        server.load("owner/model", None, &[("HF_HUB_OFFLINE", "1")]),
        &["has no unet/s-2.safetensors"],
    );
}

#[test]
fn offline_uses_the_cache_or_says_what_is_missing() {
    let server = Server::new();
    let offline = [("HF_HUB_OFFLINE", "true")];
    assert_says(
        server.load("owner/model", None, &offline),
        &["owner/model", "it is not there", "HF_HUB_OFFLINE is set"],
    );
    server.load("owner/model", None, &[]).unwrap();
    server.requests();
    let repository = server.load("owner/model", None, &offline).unwrap();
    assert!(repository.exists("unet/config.json"));
    server.load(&format!("owner/model@{COMMIT}"), None, &offline).unwrap();
    assert!(server.requests().is_empty());
    assert_says(
        server.load("owner/model", Some("fp16"), &offline),
        &["variant fp16", "HF_HUB_OFFLINE is set"],
    );
    fs::remove_file(repository.path().unwrap().join("unet/config.json")).unwrap();
    assert_says(server.load("owner/model", None, &offline), &["owner/model has no unet/config.json"]);
}

#[test]
fn a_hub_that_cannot_be_reached_leaves_the_cache() {
    let server = Server::new();
    let nowhere = [("HF_ENDPOINT", "http://127.0.0.1:9")];
    assert_says(
        server.load("owner/model", None, &nowhere),
        &["http://127.0.0.1:9 cannot be reached", "it is not there"],
    );
    server.load("owner/model", None, &[]).unwrap();
    server.load("owner/model", None, &nowhere).unwrap();
}

#[test]
fn a_hub_that_takes_connections_and_never_answers_counts_as_not_reached() {
    let server = Server::new();
    server.load("owner/model", None, &[]).unwrap();
    // Connections wait in the listener's queue: nobody accepts them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let extra = [("HF_ENDPOINT", endpoint.as_str()), ("HF_HUB_ETAG_TIMEOUT", "1")];
    server.load("owner/model", None, &extra).unwrap();
    assert_says(
        server.load("owner/other", None, &extra),
        &["owner/other", &endpoint, "cannot be reached", "timeout"],
    );
}

#[test]
fn tokens_are_sent_and_missing_ones_explained() {
    let server = Server::new();
    server.state.lock().unwrap().token = Some("hf_secret".to_string());
    assert_says(server.load("owner/model", None, &[]), &["owner/model", "set HF_TOKEN"]);
    let wrong = server.load("owner/model", None, &[("HF_TOKEN", "hf_wrong")]);
    assert_says(wrong, &["does not accept the access token"]);
    server.load("owner/model", None, &[("HF_TOKEN", " hf_secret\n")]).unwrap();
    fs::write(server.home.path().join("token"), "hf_secret\n").unwrap();
    server.load("owner/model", None, &[]).unwrap();
}

#[test]
fn unknown_models_and_folders_that_are_none() {
    let server = Server::new();
    assert_says(server.load("owner/other", None, &[]), &["owner/other: ", "no such model"]);
    assert_says(server.load("owner/model@nope", None, &[]), &["owner/model@nope: ", "revision nope"]);
    server.state.lock().unwrap().files.remove("model_index.json");
    let error = server.load("owner/model", None, &[]);
    assert_says(error, &["owner/model has no model_index.json", "v1-5.safetensors", "diffuse convert"]);
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let server = Server::new();
    let weights = "unet/diffusion_pytorch_model.safetensors";
    server.state.lock().unwrap().breaks.insert(weights.to_string(), 3);
    let repository = server.load("owner/model", None, &[]).unwrap();
    assert_eq!(*repository.read(weights).unwrap(), server.state.lock().unwrap().files[weights]);
}

#[test]
fn a_file_that_never_comes_whole_is_not_left_in_the_cache_as_whole() {
    for without_length in [false, true] {
        let server = Server::new();
        let weights = "unet/diffusion_pytorch_model.safetensors".to_string();
        {
            let mut state = server.state.lock().unwrap();
            state.breaks.insert(weights.clone(), usize::MAX);
            if without_length {
                state.without_length.insert(weights.clone());
            }
        }
        assert_says(server.load("owner/model", None, &[]), &["owner/model: could not be downloaded"]);
        assert!(!server.cached().contains(&weights));
        assert!(!server.home.path().join("hub/models--owner--model/refs/main").exists());
        assert_says(
            server.load("owner/model", None, &[("HF_HUB_OFFLINE", "1")]),
            &["cannot be loaded from the cache"],
        );

        server.state.lock().unwrap().breaks.clear();
        let repository = server.load("owner/model", None, &[]).unwrap();
        assert_eq!(*repository.read(&weights).unwrap(), server.state.lock().unwrap().files[&weights]);
    }
}

#[test]
fn a_file_that_another_commit_brought_is_linked_not_downloaded() {
    let server = Server::new();
    let repository = server.load("owner/model", None, &[]).unwrap();
    let pointer = repository.path().unwrap().join("unet/diffusion_pytorch_model.safetensors");
    fs::remove_file(&pointer).unwrap();
    let mut downloads = 0;
    let id: HubId = "owner/model".parse().unwrap();
    server.hub_with(&[]).pipeline(&id, None, &mut |_| downloads += 1).unwrap();
    assert_eq!(downloads, 0);
    assert_eq!(fs::read(pointer).unwrap().len(), 300_000);
}

#[test]
fn names_that_no_model_has() {
    for id in [
        "", "a/b/c", "../x", "/x", "a//b", ".a/b", "a/b-", "a--b/c", "a/b@", "a/b@../c", "a b", "ü/x",
        "a/b@x y",
    ] {
        assert_says(id.parse::<HubId>(), &["neither a folder nor the id of a model"]);
    }
    let id: HubId = "owner/model@refs/pr/1".parse().unwrap();
    assert_eq!(
        (id.repository(), id.revision(), id.to_string().as_str()),
        ("owner/model", "refs/pr/1", "owner/model@refs/pr/1")
    );
    assert_eq!("gpt2".parse::<HubId>().unwrap().revision(), "main");
}

#[test]
fn opening_takes_folders_and_never_asks_the_hub_for_what_is_plainly_a_path() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Repository::open(folder.path(), None, &mut |_| {}).unwrap().path(), Some(folder.path()));
    for name in ["missing/", "/missing", "./missing", "a/b/missing", "missing.safetensors"] {
        assert_says(Repository::open(name, None, &mut |_| {}), &[name, "there is no such file or folder"]);
    }
}
