//! What S3 answers in XML, read with rust-s3's types.

pub(super) use s3::serde_types::ListBucketResult;
use s3::serde_types::{CompleteMultipartUploadData, InitiateMultipartUploadResponse, Part};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What S3 says went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// Reads a refusal; what can't be read says nothing.
pub(super) fn refusal(text: &str) -> Refusal {
    quick_xml::de::from_str(text).unwrap_or_default()
}

/// The refusal in an answer that began as success: a multipart upload is completed behind a
/// head that has long been sent.
pub(super) fn late_refusal(text: &str) -> Option<Refusal> {
    let root = text.trim_start().trim_start_matches(|c| c != '<');
    let root = match root.strip_prefix("<?xml") {
        Some(declared) => declared.split_once("?>").map_or("", |(_, rest)| rest.trim_start()),
        None => root,
    };
    root.starts_with("<Error").then(|| refusal(root))
}

pub(super) fn upload_id(text: &str) -> Result<String, quick_xml::DeError> {
    quick_xml::de::from_str::<InitiateMultipartUploadResponse>(text).map(|answer| answer.upload_id)
}

pub(super) fn listing(text: &str) -> Result<ListBucketResult, quick_xml::DeError> {
    quick_xml::de::from_str(text)
}

/// The ETag in the answer to a completed upload; Ceph leaves it empty.
pub(super) fn completed_etag(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Completed {
        #[serde(rename = "ETag")]
        etag: String,
    }
    let etag = quick_xml::de::from_str::<Completed>(text).ok()?.etag;
    (!etag.trim_matches('"').is_empty()).then_some(etag)
}

/// The request that completes an upload of these parts' ETags, in their order.
pub(super) fn complete_request(etags: &[String]) -> String {
    let parts = (1..)
        .zip(etags)
        .map(|(part_number, etag)| Part { part_number, etag: etag.clone() })
        .collect();
    CompleteMultipartUploadData { parts }.to_string()
}

/// The times of listings.
pub(super) fn listed_time(text: &str) -> Option<std::time::SystemTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read_early_and_late() {
        let text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>NoSuchKey</Code>\
            <Message>gone &amp; over</Message><Resource>/b/k</Resource></Error>";
        let expected = Refusal { code: "NoSuchKey".to_owned(), message: "gone & over".to_owned() };
        assert_eq!(refusal(text), expected);
        assert_eq!(late_refusal(&format!("  \n{text}")), Some(expected));
        assert_eq!(late_refusal("<CompleteMultipartUploadResult/>"), None);
        assert_eq!(refusal("<html>502"), Refusal::default());
    }

    #[test]
    fn listings_of_several_servers_are_read() {
        let page = listing(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <Name>b</Name><IsTruncated>true</IsTruncated>\
             <NextContinuationToken>a&amp;b</NextContinuationToken>\
             <Contents><Key>r/0123456789abcdef/a &amp; b</Key>\
             <LastModified>2026-11-23T08:00:00.123Z</LastModified>\
             <ETag>&quot;x&quot;</ETag><Size>7</Size></Contents></ListBucketResult>",
        )
        .unwrap();
        assert!(page.is_truncated);
        assert_eq!(page.next_continuation_token.as_deref(), Some("a&b"));
        assert_eq!(
            (page.contents[0].key.as_str(), page.contents[0].size),
            ("r/0123456789abcdef/a & b", 7)
        );
        assert!(listed_time(&page.contents[0].last_modified).is_some());
        assert!(listing("<ListBucketResult><Name>b</Name></ListBucketResult>").is_ok());
    }

    #[test]
    fn completed_uploads_name_their_parts_and_their_version() {
        assert_eq!(
            complete_request(&["\"a\"".to_owned(), "\"b\"".to_owned()]),
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>\"a\"</ETag></Part>\
             <Part><PartNumber>2</PartNumber><ETag>\"b\"</ETag></Part></CompleteMultipartUpload>"
        );
        let answer = "<CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>\
            <ETag>&quot;x-2&quot;</ETag></CompleteMultipartUploadResult>";
        assert_eq!(completed_etag(answer).as_deref(), Some("\"x-2\""));
        let of_ceph =
            "<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>";
        assert_eq!(completed_etag(of_ceph), None);
    }
}
