//! Rows of a Parquet file: the strings of one column, or of several, without reading the others.

use super::row::BETWEEN;
use super::{Bad, Taken};
use crate::error::{Error, Exit, Result};
use crate::foreign::guarded;
use parquet::basic::{Compression, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

const HINT: &str = "the file is damaged or cut off";

/// An open file. An error ends it.
pub struct ParquetTable {
    name: String,
    /// Each key with its path from the columns down.
    keys: Vec<(String, Vec<String>)>,
    rows: RowIter<'static>,
    number: u64,
    total: u64,
    /// Bytes of the file, and where what is read of them is counted.
    size: u64,
    counted: u64,
    consumed: Arc<AtomicU64>,
}

impl ParquetTable {
    /// Reads the description of the file and finds the columns of `keys`.
    pub fn open(name: &str, file: File, keys: &[String], consumed: Arc<AtomicU64>) -> Result<ParquetTable> {
        let size = file.metadata().map_or(0, |m| m.len());
        let damaged = |e: String| Error::new(Exit::Data, format!("cannot read {name} as Parquet: {e}")).hint(HINT);
        let reader = guarded(|| SerializedFileReader::new(file)).and_then(|r| r.map_err(|e| e.to_string()));
        let reader = reader.map_err(damaged)?;
        let about = reader.metadata();
        let schema = about.file_metadata().schema();
        let mut columns: Vec<Arc<Type>> = if keys.is_empty() { schema.get_fields().to_vec() } else { Vec::new() };
        let mut paths = Vec::new();
        for key in keys {
            let path = path(schema, key).map_err(|what| {
                Error::new(Exit::Data, format!("{name}: {what}")).hint("name the column of the text with --text-key")
            })?;
            let column = schema.get_fields().iter().find(|f| f.name() == path[0]).cloned();
            columns.extend(column.filter(|c| !columns.iter().any(|have| have.name() == c.name())));
            paths.push((key.clone(), path));
        }
        for column in about.row_groups().iter().flat_map(|g| g.columns()) {
            let used = column.column_path().parts().first().is_some_and(|p| columns.iter().any(|c| c.name() == p));
            if let (true, Compression::BROTLI(_) | Compression::LZO) = (used, column.compression()) {
                let fact = format!("{name}: column {} is packed with {}", column.column_path(), column.compression());
                return Err(Error::new(Exit::Data, fact).hint("herd reads snappy, zstd, gzip and lz4: write it again"));
            }
        }
        let total = about.file_metadata().num_rows().max(0) as u64;
        let projected = Type::group_type_builder(schema.name()).with_fields(columns).build();
        let rows = guarded(|| RowIter::from_file_into(Box::new(reader)).project(Some(projected?)));
        let rows = rows.and_then(|r| r.map_err(|e| e.to_string())).map_err(damaged)?;
        Ok(ParquetTable { name: name.into(), keys: paths, rows, number: 0, total, size, counted: 0, consumed })
    }

    pub fn next(&mut self) -> Result<Option<Taken>> {
        let row = guarded(|| self.rows.next().transpose()).and_then(|r| r.map_err(|e| first_line(&e.to_string())));
        self.number += 1;
        let row = row.map_err(|e| {
            Error::new(Exit::Data, format!("cannot read {}, row {}, as Parquet: {e}", self.name, self.number))
                .hint(HINT)
        })?;
        self.count(row.is_none());
        Ok(row.map(|row| {
            self.text(&row).map_err(|what| Bad {
                place: format!(", row {}", self.number),
                what,
                hint: "name the column of the text with --text-key",
            })
        }))
    }

    fn text(&self, row: &Row) -> std::result::Result<String, String> {
        if self.keys.is_empty() {
            return Ok(object(row)?.to_string());
        }
        let mut texts = Vec::new();
        for (key, path) in &self.keys {
            let text = field(row, path).ok_or("is missing".to_string()).and_then(string);
            texts.push(text.map_err(|what| format!("\"{key}\" {what}"))?);
        }
        texts.retain(|t| !t.is_empty());
        Ok(texts.join(BETWEEN))
    }

    /// Which bytes a row came from nobody says: its share of the file.
    fn count(&mut self, ended: bool) {
        let now = match ended {
            true => self.size,
            false => (self.size as u128 * self.number as u128 / self.total.max(1) as u128) as u64,
        };
        self.consumed.fetch_add(now.saturating_sub(self.counted), Ordering::Relaxed);
        self.counted = now.max(self.counted);
    }
}

/// The path of `key`: a column as it stands, or, at its dots, down into groups. It must end in strings.
fn path(schema: &Type, key: &str) -> std::result::Result<Vec<String>, String> {
    let named = |group: &Type, name: &str| group.get_fields().iter().find(|f| f.name() == name).cloned();
    let (mut path, mut here, mut rest) = (Vec::new(), Arc::new(schema.clone()), key);
    loop {
        if !here.is_group() {
            return Err(format!("no column \"{key}\": \"{}\" has nothing below it", path.join(".")));
        }
        let (name, below) = match (named(&here, rest), rest.split_once('.')) {
            (None, Some((name, below))) => (name, Some(below)),
            _ => (rest, None),
        };
        let Some(next) = named(&here, name) else {
            let there: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).take(20).collect();
            return Err(format!("no column \"{key}\" (there is: {})", there.join(", ")));
        };
        path.push(name.to_string());
        here = next;
        match below {
            Some(below) => rest = below,
            None => break,
        }
    }
    match here.is_primitive() && here.get_physical_type() == Physical::BYTE_ARRAY {
        true => Ok(path),
        false => Err(format!("column \"{key}\" does not hold strings")),
    }
}

fn field<'a>(row: &'a Row, path: &[String]) -> Option<&'a Field> {
    let (first, rest) = path.split_first()?;
    let (_, value) = row.get_column_iter().find(|(name, _)| *name == first)?;
    match (rest, value) {
        ([], value) => Some(value),
        (rest, Field::Group(row)) => field(row, rest),
        _ => None,
    }
}

fn string(field: &Field) -> std::result::Result<String, String> {
    match field {
        Field::Str(text) => Ok(text.clone()),
        // Some writers leave the mark out that a column of bytes is text.
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).map_err(|_| "is not UTF-8".into()),
        Field::Null => Err("is null, not a string".into()),
        _ => Err("is not a string".into()),
    }
}

/// A whole row as JSON.
fn object(row: &Row) -> std::result::Result<Value, String> {
    let each = |(name, field): (&String, &Field)| Ok((name.clone(), value(field)?));
    row.get_column_iter().map(each).collect::<std::result::Result<Map<_, _>, String>>().map(Value::Object)
}

fn value(field: &Field) -> std::result::Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => (*x).into(),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => (*x as f64).into(),
        Field::Double(x) => (*x).into(),
        Field::Str(_) | Field::Bytes(_) => string(field)?.into(),
        Field::Group(row) => object(row)?,
        Field::ListInternal(list) => {
            list.elements().iter().map(value).collect::<std::result::Result<Vec<_>, String>>()?.into()
        }
        // Dates and the like, and maps: nothing of a conversation is one.
        other => other.to_string().into(),
    })
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.split(" Bytes: [").next().unwrap_or(line).to_string()
}
