//! HTML listings of folders, as nginx, Apache and Caddy make them: what counts is the links.

use std::io::BufRead;
use std::ops::ControlFlow;

use super::ListingError;
use super::markup::Tags;

/// Shows the target of every link, as it is written with its entities decoded. What it leads to
/// is [`links`](super::links)'s to say.
///
/// ```
/// use std::ops::ControlFlow;
/// let page = "<h1>Index of /a/</h1><pre><a href=\"../\">../</a>\n<a href='b&amp;c.zip'>b&amp;c.zip</a>";
/// let mut seen = Vec::new();
/// artifactapi::discovery::html::links(page.as_bytes(), &mut |href| {
///     seen.push(href.to_owned());
///     ControlFlow::Continue(())
/// }).unwrap();
/// assert_eq!(seen, ["../", "b&c.zip"]);
/// ```
///
/// # Errors
/// [`ListingError`]; what was shown before it stays true.
pub fn links(
    page: impl BufRead,
    visit: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<(), ListingError> {
    let mut tags = Tags::new(page);
    while let Some(tag) = tags.next()? {
        match tag.name.as_str() {
            "a" if !tag.is_end => {
                if let Some(href) = tag.attribute("href")
                    && visit(href).is_break()
                {
                    return Ok(());
                }
            }
            // Their text is no markup.
            "script" if !tag.is_end => tags.skip_past(b"</script", b"")?,
            "style" if !tag.is_end => tags.skip_past(b"</style", b"")?,
            _ => {}
        }
    }
    Ok(())
}
