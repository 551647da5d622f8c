//! `metadata.csv` and `metadata.jsonl`: a row for each picture.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The column that names a picture.
pub(super) const FILE_NAME: &str = "file_name";

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
    /// The metadata of `folder`, if there is any.
    pub(super) fn find(folder: &Path) -> Result<Option<Self>> {
        let (csv, jsonl) = (folder.join("metadata.csv"), folder.join("metadata.jsonl"));
        match (csv.is_file(), jsonl.is_file()) {
            (false, false) => Ok(None),
            (true, false) => Ok(Some(Self { rows: read_csv(&csv)?, file: csv })),
            (false, true) => Ok(Some(Self { rows: read_jsonl(&jsonl)?, file: jsonl })),
            (true, true) => Err(Error::Folder {
                folder: folder.display().to_string(),
                problem: "has both metadata.csv and metadata.jsonl; remove one of them".to_string(),
            }),
        }
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Fails unless each row has the column.
    pub(super) fn check_column(&self, column: &str) -> Result<()> {
        let Some(row) = self.rows.iter().find(|row| !row.values.contains_key(column)) else { return Ok(()) };
        let columns: Vec<&str> = row.values.keys().map(String::as_str).collect();
        let problem = format!("has no column {column}; the columns are {}", columns.join(", "));
        Err(self.error(row, problem))
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
