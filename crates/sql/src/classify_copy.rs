//! COPY, taken apart from its tokens.

use crate::cursor::Cursor;
use crate::kind::{CopyFormat, CopyShape, CopySource, CopyTarget, Kind};
use crate::lexer::TokenKind;
use crate::literal::split_commas;

/// `COPY t [(columns)] | (query) FROM | TO target [options] [WHERE …]`; None where that is not what it is.
pub(crate) fn copy(c: &mut Cursor) -> Option<Kind> {
    c.at += 1;
    c.accept("binary");
    let old_binary = c.at == 2;
    let (source, columns) = if c.is_symbol("(") {
        let inside = c.skip_parentheses();
        (CopySource::Query(c.bytes(inside)), None)
    } else {
        let table = c.object_name()?;
        let mut columns = None;
        if c.is_symbol("(") {
            let inside = c.skip_parentheses();
            let names = inside.filter_map(|i| c.tokens[i].identifier(c.text));
            columns = Some(names.collect());
        }
        (CopySource::Table(table), columns)
    };
    let from = matches!(source, CopySource::Table(_)) && c.accept("from");
    if !from {
        c.accept("to").then_some(())?;
    }
    let target = if c.accept_any(&["stdin", "stdout"]) {
        CopyTarget::Client
    } else if c.accept("program") {
        c.string()?;
        CopyTarget::Program
    } else {
        c.string()?;
        CopyTarget::File
    };
    let options = c.rest();
    let has_where = c.find_outside(&["where"]).is_some();
    let option_list = option_list(c);
    let format = match option_list.iter().rev().find(|(name, _)| name == "format") {
        Some((_, value)) if value.eq_ignore_ascii_case("csv") => CopyFormat::Csv,
        Some((_, value)) if value.eq_ignore_ascii_case("binary") => CopyFormat::Binary,
        Some(_) => CopyFormat::Text,
        None if old_binary => CopyFormat::Binary,
        None => CopyFormat::Text,
    };
    Some(Kind::Copy(CopyShape {
        source,
        columns,
        from,
        target,
        options,
        format,
        has_where,
        option_list,
    }))
}

/// Options of both styles: `WITH (format csv, header)` and `CSV HEADER DELIMITER ','`.
fn option_list(c: &mut Cursor) -> Vec<(String, String)> {
    let end = c.find_outside(&["where"]).unwrap_or(c.tokens.len());
    c.accept("with");
    let value = |tokens: &[crate::lexer::Token]| match tokens {
        [] => String::new(),
        [one] => one.string(c.text).unwrap_or_else(|| one.text(c.text).to_owned()),
        [first, .., last] => c.text[first.start as usize..last.end as usize].to_owned(),
    };
    let mut options = Vec::new();
    if c.is_symbol("(") {
        let inside = c.skip_parentheses();
        for range in split_commas(c, inside) {
            if let [name, rest @ ..] = &c.tokens[range] {
                options.push((name.text(c.text).to_ascii_lowercase(), value(rest)));
            }
        }
        return options;
    }
    let mut at = c.at;
    while at < end {
        let name = c.tokens[at].text(c.text).to_ascii_lowercase();
        at += 1;
        match name.as_str() {
            "csv" | "binary" => options.push(("format".into(), name)),
            "header" | "freeze" => options.push((name, String::new())),
            "delimiter" | "null" | "quote" | "escape" | "encoding" => {
                if c.tokens.get(at).is_some_and(|t| t.is_word(c.text, "as")) {
                    at += 1;
                }
                let constant = c.tokens[at..end].first().filter(|t| t.kind == TokenKind::String);
                options.push((name, value(constant.map(std::slice::from_ref).unwrap_or_default())));
                at += usize::from(constant.is_some());
            }
            // FORCE QUOTE *, FORCE NOT NULL a, b: kept as written up to the end.
            _ => {
                options.push((name, value(&c.tokens[at..end])));
                break;
            }
        }
    }
    options
}
