//! `metadata.csv` and `metadata.jsonl`: a row for each picture.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::picture_file::has_picture_name;
use crate::error::{Error, Result};

/// The rows of a metadata file.
pub(super) struct Metadata {
    file: PathBuf,
    rows: Vec<Row>,
}

/// What a file says of one picture.
pub(super) struct Row {
    line: u64,
    values: Map<String, Value>,
}

impl Metadata {
    /// The metadata among `files`: at most one for each folder.
    pub(super) fn find(files: &[PathBuf]) -> Result<Vec<Self>> {
        let mut found: Vec<Self> = Vec::new();
        for file in files {
            let rows = match file.file_name().and_then(|name| name.to_str()) {
                Some("metadata.csv") => read_csv(file)?,
                Some("metadata.jsonl") => read_jsonl(file)?,
                _ => continue,
            };
            if let Some(other) = found.iter().find(|other| other.file.parent() == file.parent()) {
                let folder = file.parent().unwrap_or(Path::new(".")).display().to_string();
                let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let problem =
                    format!("has both {} and {}; remove one of them", name(&other.file), name(file));
                return Err(Error::Folder { folder, problem });
            }
            found.push(Self { file: file.clone(), rows });
        }
        Ok(found)
    }

    /// Whether a row has the column.
    pub(super) fn has(&self, column: &str) -> bool {
        self.rows.iter().any(|row| row.values.contains_key(column))
    }

    /// The pictures that its rows name, in whichever column.
    pub(super) fn named_pictures(&self) -> impl Iterator<Item = PathBuf> {
        let texts = self.rows.iter().flat_map(|row| row.values.values()).filter_map(Value::as_str);
        texts.map(move |name| self.folder().join(name)).filter(|file| has_picture_name(file))
    }

    /// The folder that its file names start from.
    pub(super) fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("."))
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Fails unless each row has the column.
    pub(super) fn check_column(&self, column: &str) -> Result<()> {
        let Some(row) = self.lacking(column) else { return Ok(()) };
        let columns: Vec<&str> = row.values.keys().map(String::as_str).collect();
        let problem = format!("has no column {column}; the columns are {}", columns.join(", "));
        Err(self.error(row, problem))
    }

    /// What the column of pictures `column` is called here.
    pub(super) fn picture_column(&self, column: &str) -> Result<String> {
        let column =
            if column == "image" && self.lacking("file_name").is_none() { "file_name" } else { column };
        let longer = format!("{column}_file_name");
        if self.lacking(column).is_some() && self.lacking(&longer).is_none() {
            return Ok(longer);
        }
        self.check_column(column)?;
        Ok(column.to_string())
    }

    /// A row without the column.
    fn lacking(&self, column: &str) -> Option<&Row> {
        self.rows.iter().find(|row| !row.values.contains_key(column))
    }

    /// A single text.
    pub(super) fn text<'a>(&self, row: &'a Row, column: &str) -> Result<&'a str> {
        match row.values.get(column) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text),
            other => Err(self.error(row, format!("{column} is {}; expected a text", describe(other)))),
        }
    }

    /// A text or several of them.
    pub(super) fn texts(&self, row: &Row, column: &str) -> Result<Vec<String>> {
        let wrong = |value| {
            self.error(row, format!("{column} is {}; expected a text or a list of texts", describe(value)))
        };
        match row.values.get(column) {
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(values)) if !values.is_empty() => {
                let text = |value: &Value| {
                    value.as_str().map(str::to_string).ok_or_else(|| wrong(row.values.get(column)))
                };
                values.iter().map(text).collect()
            }
            other => Err(wrong(other)),
        }
    }

    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    fn error(&self, row: &Row, problem: String) -> Error {
        Error::Metadata { file: format!("{} line {}", self.file.display(), row.line), problem }
    }
}

fn describe(value: Option<&Value>) -> String {
    value.map_or("missing".to_string(), Value::to_string)
}

fn read_csv(file: &Path) -> Result<Vec<Row>> {
    let wrong = |error: csv::Error| Error::Metadata {
        file: file.display().to_string(),
        problem: format!("is no CSV file with a line of column names: {error}"),
    };
    let mut reader = csv::Reader::from_path(file).map_err(wrong)?;
    let columns = reader.headers().map_err(wrong)?.clone();
    let row = |record: csv::Result<csv::StringRecord>| {
        let record = record.map_err(wrong)?;
        let values = columns.iter().zip(&record);
        let values = values.map(|(column, value)| (column.trim().to_string(), Value::from(value))).collect();
        Ok(Row { line: record.position().map_or(0, csv::Position::line), values })
    };
    reader.records().map(row).collect()
}

fn read_jsonl(file: &Path) -> Result<Vec<Row>> {
    let wrong = |line: Option<u64>, problem: String| {
        let line = line.map_or(String::new(), |line| format!(" line {line}"));
        Error::Metadata { file: format!("{}{line}", file.display()), problem }
    };
    let text = fs::read_to_string(file).map_err(|error| wrong(None, format!("cannot be read: {error}")))?;
    let lines = (1..).zip(text.trim_start_matches('\u{feff}').lines());
    let row = |(line, text): (u64, &str)| match serde_json::from_str(text) {
        Ok(Value::Object(values)) => Ok(Row { line, values }),
        Ok(_) => Err(wrong(Some(line), "is no JSON object".to_string())),
        Err(error) => Err(wrong(Some(line), format!("is no JSON object: {error}"))),
    };
    lines.filter(|(_, text)| !text.trim().is_empty()).map(row).collect()
}
