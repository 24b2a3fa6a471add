//! Protocol buffers as text: the form of a `.prototxt`.

use crate::draft::Reason;

/// Messages within messages that are read.
const DEPTH: usize = 32;

/// The fields of a message, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Message(Vec<(String, Field)>);

#[derive(Clone, Debug, PartialEq)]
enum Field {
    /// A number, a name, or what stood between quotes.
    Scalar(String),
    Message(Message),
}

impl Message {
    /// # Errors
    /// With the line of what is not in the form of a message.
    pub(super) fn parse(text: &str) -> Result<Self, Reason> {
        let mut parser = Parser { rest: text, line: 1, depth: 0 };
        let message = parser.message(None)?;
        Ok(message)
    }

    /// Scalars of this name, in order.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.fields(name).filter_map(|field| match field {
            Field::Scalar(text) => Some(text.as_str()),
            Field::Message(_) => None,
        })
    }

    /// The last scalar of this name, which is the one that counts.
    pub(super) fn text<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.all(name).last()
    }

    pub(super) fn messages<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Self> {
        self.fields(name).filter_map(|field| match field {
            Field::Message(message) => Some(message),
            Field::Scalar(_) => None,
        })
    }

    /// The message of this name, or one without fields.
    pub(super) fn message(&self, name: &str) -> Self {
        // Messages of one name are one message in parts.
        Self(self.messages(name).flat_map(|message| message.0.iter().cloned()).collect())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    /// A number; `default` if there is none.
    ///
    /// # Errors
    /// For what is no number of this type.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, Reason> {
        self.text(name).map_or(Ok(default), |text| number(name, text))
    }

    /// All numbers of this name.
    ///
    /// # Errors
    /// For what is no number of this type.
    pub(super) fn numbers<T: std::str::FromStr>(&self, name: &str) -> Result<Vec<T>, Reason> {
        self.all(name).map(|text| number(name, text)).collect()
    }

    /// A truth value; `default` if there is none.
    ///
    /// # Errors
    /// For what is neither `true` nor `false`.
    pub(super) fn flag(&self, name: &str, default: bool) -> Result<bool, Reason> {
        match self.text(name) {
            None => Ok(default),
            Some("true" | "True" | "t" | "1") => Ok(true),
            Some("false" | "False" | "f" | "0") => Ok(false),
            Some(other) => Err(format!("{name} is `{other}`, expected true or false")),
        }
    }

    fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Field> {
        self.0.iter().filter(move |(of, _)| of == name).map(|(_, field)| field)
    }
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, Reason> {
    text.parse().map_err(|_| format!("{name} is `{text}`, expected a number"))
}

struct Parser<'a> {
    rest: &'a str,
    line: usize,
    depth: usize,
}

impl Parser<'_> {
    fn fail<T>(&self, reason: impl std::fmt::Display) -> Result<T, Reason> {
        Err(format!("line {}: {reason}", self.line))
    }

    /// Fields up to the closing bracket, or to the end of the file.
    fn message(&mut self, closing: Option<char>) -> Result<Message, Reason> {
        if self.depth > DEPTH {
            return self.fail(format!("messages are nested more than {DEPTH} times"));
        }
        let mut fields = Vec::new();
        loop {
            self.skip();
            match (self.rest.chars().next(), closing) {
                (None, None) => return Ok(Message(fields)),
                (None, Some(bracket)) => {
                    return self.fail(format!("the file ends where `{bracket}` is expected"));
                }
                (Some(found), Some(bracket)) if found == bracket => {
                    self.advance(1);
                    return Ok(Message(fields));
                }
                (Some(',' | ';'), _) => self.advance(1),
                _ => {
                    let name = self.word()?;
                    self.field(name, &mut fields)?;
                }
            }
        }
    }

    fn field(&mut self, name: String, fields: &mut Vec<(String, Field)>) -> Result<(), Reason> {
        self.skip();
        let colon = self.rest.starts_with(':');
        if colon {
            self.advance(1);
            self.skip();
        }
        if self.rest.starts_with('[') {
            self.advance(1);
            loop {
                self.skip();
                match self.rest.chars().next() {
                    Some(']') => {
                        self.advance(1);
                        return Ok(());
                    }
                    Some(',') => self.advance(1),
                    _ => {
                        let value = self.value()?;
                        fields.push((name.clone(), value));
                    }
                }
            }
        }
        if !colon && !self.rest.starts_with(['{', '<']) {
            return self.fail(format!("expected `:` or a message after `{name}`"));
        }
        let value = self.value()?;
        fields.push((name, value));
        Ok(())
    }

    fn value(&mut self) -> Result<Field, Reason> {
        self.skip();
        match self.rest.chars().next() {
            Some(bracket @ ('{' | '<')) => {
                self.advance(1);
                self.depth += 1;
                let message = self.message(Some(if bracket == '{' { '}' } else { '>' }))?;
                self.depth -= 1;
                Ok(Field::Message(message))
            }
            Some('"' | '\'') => {
                // Strings one after the other are one string.
                let mut text = String::new();
                while let Some(quote @ ('"' | '\'')) = self.rest.chars().next() {
                    self.quoted(quote, &mut text)?;
                    self.skip();
                }
                Ok(Field::Scalar(text))
            }
            _ => self.word().map(Field::Scalar),
        }
    }

    fn quoted(&mut self, quote: char, text: &mut String) -> Result<(), Reason> {
        self.advance(1);
        let mut escaped = false;
        for (at, c) in self.rest.char_indices() {
            match c {
                '\n' => break,
                _ if escaped => {
                    text.push(match c {
                        'n' => '\n',
                        't' => '\t',
                        other => other,
                    });
                    escaped = false;
                }
                '\\' => escaped = true,
                c if c == quote => {
                    self.advance(at + 1);
                    return Ok(());
                }
                c => text.push(c),
            }
        }
        self.fail("a string does not end")
    }

    /// A name or number.
    fn word(&mut self) -> Result<String, Reason> {
        let usable = |c: char| c.is_ascii_alphanumeric() || "_.+-/".contains(c);
        let len = self.rest.find(|c| !usable(c)).unwrap_or(self.rest.len());
        if len == 0 {
            let found = self.rest.chars().next().map_or("the end of the file".into(), |c| format!("`{c}`"));
            return self.fail(format!("expected a name or a value, found {found}"));
        }
        let word = self.rest[..len].to_owned();
        self.advance(len);
        Ok(word)
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            let trimmed = self.rest.trim_start();
            let white = self.rest.len() - trimmed.len();
            let comment =
                if trimmed.starts_with('#') { trimmed.find('\n').unwrap_or(trimmed.len()) } else { 0 };
            if white + comment == 0 {
                return;
            }
            self.advance(white + comment);
        }
    }

    fn advance(&mut self, bytes: usize) {
        self.line += self.rest[..bytes].matches('\n').count();
        self.rest = &self.rest[bytes..];
    }
}
