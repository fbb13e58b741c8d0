//! `APKINDEX.tar.gz`: gzip of several tar archives, of which one has the member `APKINDEX`, a
//! text of records that blank lines end.

use std::io::{BufReader, Read};
use std::ops::ControlFlow;

use super::lines::{Lines, field};
use super::unpack::{Packing, unpack};
use super::{Listed, ListingError, Visit, in_folder, tar};

/// The index's file name.
pub const INDEX: &str = "APKINDEX.tar.gz";

/// Shows the packages of an index that lies in `folder` (empty, or ending in `/`).
///
/// # Errors
/// [`ListingError`]; what was shown before it stays true.
pub fn packages(index: Box<dyn Read>, folder: &str, visit: Visit<'_>) -> Result<(), ListingError> {
    let text = tar::member(unpack(index, Packing::Gzip)?, "APKINDEX")?;
    let mut lines = Lines::new(BufReader::new(text));
    let mut record = Record::default();
    while let Some(line) = lines.next()? {
        if line.is_empty() {
            if record.show(folder, visit).is_break() {
                return Ok(());
            }
        } else if let Some(name) = field(line, "P") {
            record.name = Some(name.to_owned());
        } else if let Some(version) = field(line, "V") {
            record.version = Some(version.to_owned());
        } else if let Some(size) = field(line, "S") {
            record.size = size.parse().ok();
        }
    }
    let _ = record.show(folder, visit);
    Ok(())
}

#[derive(Default)]
struct Record {
    name: Option<String>,
    version: Option<String>,
    size: Option<u64>,
}

impl Record {
    /// Shows the record if it is one, and begins the next.
    fn show(&mut self, folder: &str, visit: Visit<'_>) -> ControlFlow<()> {
        let Self { name, version, size } = std::mem::take(self);
        let (Some(name), Some(version)) = (name, version) else { return ControlFlow::Continue(()) };
        match in_folder(folder, &format!("{name}-{version}.apk")) {
            Some(path) => visit(Listed { path, size }),
            None => ControlFlow::Continue(()),
        }
    }
}
