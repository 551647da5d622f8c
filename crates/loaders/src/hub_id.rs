use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A model on the Hugging Face hub: `owner/name`, or `owner/name@revision`.
///
/// The revision is a branch, a tag or a commit; without one it is `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    repository: String,
    revision: String,
}

/// The longest name that the hub takes.
const MAX_LENGTH: usize = 96;

impl HubId {
    /// `owner/name`, without the revision.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Whether the revision is a commit, which never changes its meaning.
    pub fn is_commit(&self) -> bool {
        self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit())
    }
}

impl FromStr for HubId {
    type Err = Error;

    /// Reads `owner/name` or `owner/name@revision`, by the rules of huggingface_hub's `validate_repo_id`.
    fn from_str(id: &str) -> Result<Self> {
        let (repository, revision) = id.split_once('@').unwrap_or((id, "main"));
        let bad = |reason| Err(Error::BadHubId { id: id.to_string(), reason });
        if repository.split('/').count() > 2 {
            return bad("there is more than one /");
        }
        if repository.len() > MAX_LENGTH {
            return bad("it is longer than 96 characters");
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        for part in repository.split('/') {
            if part.is_empty() || !part.chars().all(is_word) {
                return bad("its parts are letters, digits, - _ and .");
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
                return bad("its parts do not begin or end with - or .");
            }
        }
        if repository.contains("--") || repository.contains("..") || repository.ends_with(".git") {
            return bad("it has -- or .. in it or ends with .git");
        }
        if revision.split('/').any(|part| part.is_empty() || part.starts_with('.'))
            || !revision.chars().all(|c| is_word(c) || "/+".contains(c))
        {
            return bad("the revision is not the name of a branch, tag or commit");
        }
        Ok(Self { repository: repository.to_string(), revision: revision.to_string() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.repository),
            revision => write!(f, "{}@{revision}", self.repository),
        }
    }
}
