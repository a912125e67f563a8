//! One file of HTML with everything in it. Plots are drawn by uPlot 1.6.32 (MIT, © Leon Sorokin; `assets/uplot.LICENSE`, which
//! goes into the page too).

use serde_json::Value;

const HTML: &str = include_str!("assets/page.html");
const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");
const PLOT_STYLE: &str = include_str!("assets/uplot.min.css");
const PLOT_SCRIPT: &str = include_str!("assets/uplot.min.js");
const LICENCE: &str = include_str!("assets/uplot.LICENSE");

/// The page of `data`; `live`: it asks its own address for `data.json` again and again.
pub fn page(data: &Value, live: bool) -> String {
    let parts = [
        ("STYLE", format!("{PLOT_STYLE}\n{STYLE}")),
        ("LICENCE", LICENCE.trim().to_string()),
        ("LIVE", live.to_string()),
        ("PLOTS", PLOT_SCRIPT.to_string()),
        ("SCRIPT", SCRIPT.to_string()),
        ("DATA", in_script(data)),
    ];
    // piece by piece, so that nothing in the data is taken for a place
    let mut out = String::new();
    let mut rest = HTML;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        out += before;
        out += parts.iter().find(|(n, _)| *n == name).map_or("", |(_, text)| text);
        rest = after;
    }
    out + rest
}

/// JSON that can stand in a script element: no `<` can end it, whatever a file says, and U+2028/9 end no line.
pub fn in_script(data: &Value) -> String {
    let text = data.to_string();
    text.replace('<', "\\u003c").replace('>', "\\u003e").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_files_say_stays_data() {
        let evil = json!({ "name": "</script><script>alert(1)</script><!-- {{SCRIPT}} \u{2028}" });
        let page = page(&evil, false);
        assert_eq!(page.matches("</script>").count(), HTML.matches("</script>").count());
        assert!(!page.contains("alert(1)</script"));
        let start = page.find("id=\"data\">").unwrap() + "id=\"data\">".len();
        let end = start + page[start..].find("</script>").unwrap();
        assert_eq!(serde_json::from_str::<Value>(&page[start..end]).unwrap(), evil);
    }

    #[test]
    fn the_page_asks_nobody_for_anything() {
        let page = page(&json!({ "runs": [] }), false);
        for outside in ["src=", "<link", "@import", "url(", "http://"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("Permission is hereby granted"), "the licence of uPlot is in the page");
        for name in ["STYLE", "LICENCE", "LIVE", "PLOTS", "SCRIPT", "DATA"] {
            assert_eq!(HTML.matches(&format!("{{{{{name}}}}}")).count(), 1, "{name}");
        }
    }
}
