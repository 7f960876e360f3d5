//! SQL that a function in PL/pgSQL runs by EXECUTE, where the function's text has all of it: string constants, put together with values that are
//! quoted as such. What names or pieces of SQL it could put in besides makes it another statement, which only running it shows.

/// A piece of the text.
#[derive(Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    String(String),
    Symbol(char),
}

/// All of it, in the lower case of the text; none where some of it is built from more. The text has no other strings than those in quotes, no
/// backslashes and no nested comments.
pub(super) fn constant_sql(text: &str) -> Option<String> {
    let tokens = tokens(text)?;
    let mut sql = String::new();
    for at in (0..tokens.len()).filter(|&at| tokens[at] == Token::Word("execute")) {
        executed(&tokens, at + 1, &mut sql)?;
        sql.push('\n');
    }
    Some(sql)
}

fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(c) = rest.chars().next() {
        let end = match c {
            '-' if rest.starts_with("--") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/")? + 2,
            '\'' => {
                let (value, end) = string(rest)?;
                found.push(Token::String(value));
                end
            }
            '"' => {
                found.push(Token::Symbol(c));
                rest[1..].find('"')? + 2
            }
            c if is_word(c) => {
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                // The letter of another kind of string.
                if rest[end..].starts_with('\'') {
                    return None;
                }
                found.push(Token::Word(&rest[..end]));
                end
            }
            c if c.is_whitespace() => c.len_utf8(),
            c => {
                found.push(Token::Symbol(c));
                c.len_utf8()
            }
        };
        rest = &rest[end..];
    }
    Some(found)
}

/// The value of the string that begins here, and where it ends.
fn string(text: &str) -> Option<(String, usize)> {
    let (mut value, mut at) = (String::new(), 1);
    loop {
        let quote = at + text[at..].find('\'')?;
        value.push_str(&text[at..quote]);
        at = quote + 1;
        if !text[at..].starts_with('\'') {
            return Some((value, at));
        }
        value.push('\'');
        at += 1;
    }
}

/// `'…' || quote_literal(x) || format('… %L', y)`, up to what ends it.
fn executed(tokens: &[Token<'_>], mut at: usize, sql: &mut String) -> Option<()> {
    loop {
        let opens = tokens.get(at + 1) == Some(&Token::Symbol('('));
        match tokens.get(at)? {
            Token::String(value) => {
                sql.push_str(value);
                at += 1;
            }
            Token::Word("quote_literal" | "quote_nullable") if opens => {
                sql.push_str(" null ");
                at = close(tokens, at + 1)? + 1;
            }
            Token::Word("format") if opens => {
                let Token::String(format) = tokens.get(at + 2)? else {
                    return None;
                };
                let is_whole = matches!(tokens.get(at + 3)?, Token::Symbol(',' | ')'));
                sql.push_str(&formatted(format).filter(|_| is_whole)?);
                at = close(tokens, at + 1)? + 1;
            }
            _ => return None,
        }
        match tokens.get(at) {
            Some(Token::Symbol('|')) if tokens.get(at + 1) == Some(&Token::Symbol('|')) => at += 2,
            None | Some(Token::Symbol(';') | Token::Word("into" | "using" | "loop")) => return Some(()),
            _ => return None,
        }
    }
}

/// The parenthesis that closes this one.
fn close(tokens: &[Token<'_>], open: usize) -> Option<usize> {
    let mut depth = 0;
    (open..tokens.len()).find(|&at| {
        depth += i32::from(tokens[at] == Token::Symbol('(')) - i32::from(tokens[at] == Token::Symbol(')'));
        depth == 0
    })
}

/// A format with NULL in place of values that are quoted as literals; none where it has others.
fn formatted(format: &str) -> Option<String> {
    let (mut sql, mut rest) = (String::new(), format);
    while let Some(at) = rest.find('%') {
        sql.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix('%') {
            sql.push('%');
            rest = behind;
            continue;
        }
        let behind = rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '$' || c == '-');
        rest = behind.strip_prefix('l')?;
        sql.push_str(" null ");
    }
    sql.push_str(rest);
    Some(sql)
}

#[cfg(test)]
mod tests {
    use super::constant_sql;

    #[test]
    fn only_what_is_all_there_is_constant() {
        for (text, sql) in [
            ("begin execute 'select 1' into x; end", Some("select 1\n")),
            (
                "for r in execute 'select ''a''' || /* */ ' from t' loop end loop",
                Some("select 'a' from t\n"),
            ),
            (
                "execute format('insert into t values (%l, %2$l, ''100%%'')', f(a, (b)), c) using d;",
                Some("insert into t values ( null ,  null , '100%')\n"),
            ),
            (
                "execute 'select ' || quote_literal(a || b) || ' from t'",
                Some("select  null  from t\n"),
            ),
            ("-- execute x\n perform 'execute y'; \"execute\" := 1;", Some("")),
            ("execute 'select * from ' || t", None),
            ("execute format('select * from %i', t)", None),
            ("execute format('select ' || x, t)", None),
            ("execute query", None),
            ("execute e'select 1'", None),
            ("execute 'a' || case when x then 'b' end", None),
        ] {
            assert_eq!(constant_sql(text).as_deref(), sql, "{text}");
        }
    }
}
