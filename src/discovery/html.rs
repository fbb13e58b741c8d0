//! HTML listings of folders, as nginx, Apache and Caddy make them: what counts is the links.

use std::io::BufRead;
use std::ops::ControlFlow;

use super::ListingError;
use super::markup::Tags;

/// A link's target as a page has it, its entities decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Href<'a> {
    /// As it is written.
    pub target: &'a str,
    /// What the page says that its links are relative to, if not to itself.
    pub base: Option<&'a str>,
}

/// Shows the target of every link. What it leads to is [`links`](super::links)'s to say.
///
/// ```
/// use std::ops::ControlFlow;
/// let page = "<h1>Index of /a/</h1><pre><a href=\"../\">../</a>\n<a href='b&amp;c.zip'>b&amp;c.zip</a>";
/// let mut seen = Vec::new();
/// artifactapi::discovery::html::links(page.as_bytes(), &mut |href| {
///     seen.push(href.target.to_owned());
///     ControlFlow::Continue(())
/// }).unwrap();
/// assert_eq!(seen, ["../", "b&c.zip"]);
/// ```
///
/// # Errors
/// [`ListingError`]; what was shown before it stays true.
pub fn links(
    page: impl BufRead,
    visit: &mut dyn FnMut(Href<'_>) -> ControlFlow<()>,
) -> Result<(), ListingError> {
    let mut tags = Tags::new(page);
    let mut base: Option<String> = None;
    while let Some(tag) = tags.next()? {
        match tag.name.as_str() {
            "a" if !tag.is_end => {
                if let Some(target) = tag.attribute("href")
                    && visit(Href { target, base: base.as_deref() }).is_break()
                {
                    return Ok(());
                }
            }
            // The first one counts.
            "base" if !tag.is_end && base.is_none() => {
                base = tag.attribute("href").map(str::to_owned);
            }
            // Their text is no markup.
            "script" if !tag.is_end => tags.skip_past(b"</script", b"")?,
            "style" if !tag.is_end => tags.skip_past(b"</style", b"")?,
            _ => {}
        }
    }
    Ok(())
}
