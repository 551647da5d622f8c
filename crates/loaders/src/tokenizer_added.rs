//! Tokens that are added to a tokenizer after it was loaded, and taken away again.

use std::sync::Arc;

use tokenizers::{AddedToken, NormalizedString, Normalizer, Tokenizer};

use crate::{ClipTokenizer, Result};

/// What was added since the tokenizer was loaded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loaded {
    /// The tokenizer as it was loaded; `None` as long as nothing was added.
    pristine: Option<Arc<Tokenizer>>,
    /// In the order of their ids.
    tokens: Vec<String>,
}

impl ClipTokenizer {
    /// Adds tokens, which are then found in a text before it is cut into words, and gives their ids: those after the vocabulary.
    ///
    /// As with `add_tokens` of transformers, a token is found in upper and lower case and within words, the longest first where
    /// several begin at the same place.
    ///
    /// # Errors
    /// When a token is empty or in the vocabulary, or differs from another only in case. Then none is added.
    pub fn add_tokens(&mut self, tokens: &[impl AsRef<str>]) -> Result<Vec<u32>> {
        let tokens: Vec<String> = tokens.iter().map(|token| token.as_ref().to_string()).collect();
        if let Some(problem) = self.conflict(&tokens) {
            return Err(self.message(format!("tokens cannot be added: {problem}")));
        }
        let added = tokens.iter().map(|token| AddedToken::from(token.as_str(), false));
        let mut extended = self.tokenizer.clone();
        extended.add_tokens(added.collect::<Vec<_>>()).map_err(|error| self.error(error))?;
        let id = |token: &String| {
            extended.token_to_id(token).ok_or_else(|| self.message(format!("token {token:?} was not added")))
        };
        let ids = tokens.iter().map(id).collect::<Result<_>>()?;
        let pristine = std::mem::replace(&mut self.tokenizer, extended);
        self.loaded.pristine.get_or_insert_with(|| Arc::new(pristine));
        self.loaded.tokens.extend(tokens);
        Ok(ids)
    }

    /// Takes tokens away that were added by [`add_tokens`](Self::add_tokens), and gives the ids that they had. Tokens with higher ids
    /// move up; with the last token gone the tokenizer is what was loaded.
    ///
    /// # Errors
    /// When one was not added so. Then none is taken away.
    pub fn remove_tokens(&mut self, tokens: &[impl AsRef<str>]) -> Result<Vec<u32>> {
        let mut ids = Vec::with_capacity(tokens.len());
        for token in tokens.iter().map(AsRef::as_ref) {
            let was_added = self.loaded.tokens.iter().any(|loaded| loaded == token);
            match self.token_to_id(token).filter(|_| was_added) {
                Some(id) => ids.push(id),
                None => return Err(self.message(format!("the token {token:?} was not added, so it stays"))),
            }
        }
        let Some(pristine) = self.loaded.pristine.clone() else { return Ok(ids) };
        let is_kept = |token: &&String| !tokens.iter().any(|gone| gone.as_ref() == token.as_str());
        let kept: Vec<String> = self.loaded.tokens.iter().filter(is_kept).cloned().collect();
        let mut shortened = self.clone();
        shortened.tokenizer = Tokenizer::clone(&pristine);
        shortened.loaded = Loaded::default();
        if !kept.is_empty() {
            shortened.add_tokens(&kept)?;
        }
        *self = shortened;
        Ok(ids)
    }

    /// The tokens that were added by [`add_tokens`](Self::add_tokens), in the order of their ids.
    pub fn loaded_tokens(&self) -> &[String] {
        &self.loaded.tokens
    }

    /// Whether `token` is one of the tokens that are found in a text before it is cut into words, from the files or added later.
    pub fn is_added_token(&self, token: &str) -> bool {
        self.tokenizer.get_added_vocabulary().get_vocab().contains_key(token)
    }

    /// The tokens of `text`: words and parts of words as the vocabulary spells them (`cat</w>`), added tokens as the text does, in
    /// lower case.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn tokenize(&self, text: &str) -> Result<Vec<String>> {
        // Not the fast way, which leaves the texts away.
        let encoding = self.tokenizer.encode(text, false).map_err(|error| self.error(error))?;
        Ok(encoding.get_tokens().to_vec())
    }

    /// Whether texts are written as `token` is before tokens are looked for: in lower case, and in Unicode's composed form.
    pub(crate) fn is_normal(&self, token: &str) -> Result<bool> {
        Ok(self.normalized(token)? == token)
    }

    /// Why `tokens`, which belong together, cannot be added.
    pub(crate) fn conflict(&self, tokens: &[String]) -> Option<String> {
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().values();
        let mut known: Vec<(String, String)> = added
            .filter(|token| token.normalized)
            .filter_map(|token| Some((self.normalized(&token.content).ok()?, token.content.clone())))
            .collect();
        for (index, token) in tokens.iter().enumerate() {
            if token.trim().is_empty() {
                return Some("it is empty".to_string());
            }
            if self.token_to_id(token).is_some() || tokens[..index].contains(token) {
                return Some(format!("{token:?} is in the tokenizer's vocabulary already"));
            }
            let Ok(normal) = self.normalized(token) else {
                return Some(format!("{token:?} is no text that the tokenizer can read"));
            };
            if let Some((_, other)) = known.iter().find(|(known, _)| *known == normal) {
                return Some(format!("{token:?} differs from the token {other:?} only in case"));
            }
            known.push((normal, token.clone()));
        }
        None
    }

    /// Why the first of `tokens` and the numbered ones after it would be mixed up with others: `<cat>_1` is the second vector of
    /// `<cat>`, whoever has loaded it.
    pub(crate) fn series_conflict(&self, tokens: &[String]) -> Option<String> {
        let first = tokens.first()?;
        let next = format!("{first}_{}", tokens.len());
        if self.is_added_token(&next) {
            return Some(format!("the token {next:?} is there, which would be taken for one of its vectors"));
        }
        let (stem, number) = first.rsplit_once('_')?;
        let number: usize = number.parse().ok().filter(|number| *number > 0)?;
        let before = if number == 1 { stem.to_string() } else { format!("{stem}_{}", number - 1) };
        let is_further = self.is_added_token(stem) && self.is_added_token(&before);
        is_further.then(|| format!("it would be taken for one of the vectors of the token {stem:?}"))
    }

    fn normalized(&self, text: &str) -> Result<String> {
        let mut normalized = NormalizedString::from(text);
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            normalizer.normalize(&mut normalized).map_err(|error| self.error(error))?;
        }
        Ok(normalized.get().to_string())
    }
}
