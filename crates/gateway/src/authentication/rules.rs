//! Who may connect, from where and how they prove who they are: lines in the format of `pg_hba.conf`, of which the first
//! that matches decides. No I/O.
//!
//! A gateway listens on TCP only, so there is no `local`. Of the methods, those are known that a gateway can carry out
//! without the client's password: `trust`, `reject`, `scram-sha-256`, `md5` and `cert`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::str::FromStr;

/// The rules where the configuration has none: this machine's clients are trusted, all others need a password.
pub const DEFAULT_RULES: [&str; 3] = [
    "host all all 127.0.0.1/32 trust",
    "host all all ::1/128 trust",
    "host all all all scram-sha-256",
];

impl Default for Rules {
    fn default() -> Self {
        Self::parse(DEFAULT_RULES).expect("they are right")
    }
}

/// What a rule is matched with.
pub(crate) struct Attempt<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
    /// the client's address, an IPv4 address as such
    pub(crate) from: IpAddr,
    pub(crate) encrypted: bool,
    /// the user's roles, own and inherited; only looked at by rules that name groups
    pub(crate) roles: &'a HashSet<String>,
}

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Trust,
    Reject,
    ScramSha256,
    /// for roles whose password is kept as an MD5 hash; SCRAM for all others
    Md5,
    /// the client's TLS certificate names the role
    Certificate,
}

/// What else a rule wants of the client's TLS certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ClientCertificate {
    NotAsked,
    /// one that the configured authority signed
    Signed,
    /// and that names the role
    NamesTheRole,
}

/// One line.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    encryption: Encryption,
    databases: Vec<Name>,
    users: Vec<Name>,
    addresses: Addresses,
    pub(crate) method: Method,
    pub(crate) certificate: ClientCertificate,
}

/// All lines, in order.
#[derive(Debug, Clone)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Any,
    Needed,
    Absent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    All,
    SameUser,
    SameRole,
    /// `+name`: whoever is in this role
    In(String),
    Exactly(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Addresses {
    All,
    Network(IpAddr, u8),
}

impl Rules {
    /// Reads one rule a line; empty lines and comments are left out.
    ///
    /// Errors: a text that names the line and what would be right there.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut rules = Vec::new();
        for line in lines {
            let fields = fields(line).map_err(|e| format!("{line:?}: {e}"))?;
            if !fields.is_empty() {
                rules.push(Rule::parse(&fields).map_err(|e| format!("{line:?}: {e}"))?);
            }
        }
        Ok(Self(rules))
    }

    /// The first rule that matches.
    pub(crate) fn find(&self, attempt: &Attempt<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.matches(attempt))
    }

    /// Whether a rule asks which roles a user is in.
    pub(crate) fn name_groups(&self) -> bool {
        let is_group = |name: &Name| matches!(name, Name::In(_) | Name::SameRole);
        self.0.iter().any(|r| r.users.iter().chain(&r.databases).any(is_group))
    }

    /// Whether a rule can only be met over TLS.
    pub(crate) fn need_tls(&self) -> bool {
        self.0.iter().any(|r| r.encryption == Encryption::Needed)
    }

    /// Whether a rule looks at client certificates.
    pub(crate) fn need_client_certificates(&self) -> bool {
        self.0.iter().any(|r| r.certificate > ClientCertificate::NotAsked)
    }
}

impl Rule {
    fn parse(fields: &[Vec<Token>]) -> Result<Self, String> {
        let (kind, rest) = fields.split_first().ok_or("empty")?;
        let encryption = match one(kind)? {
            "host" => Encryption::Any,
            "hostssl" => Encryption::Needed,
            "hostnossl" => Encryption::Absent,
            "local" => return Err("a gateway has no Unix socket; use host, hostssl or hostnossl".into()),
            other => return Err(format!("{other:?} is none of host, hostssl and hostnossl")),
        };
        let [databases, users, address, rest @ ..] = rest else {
            return Err("wanted: type, databases, users, addresses, method".into());
        };
        let (addresses, rest) = parse_addresses(one(address)?, rest)?;
        let (method, options) = rest.split_first().ok_or("the method is missing at the end")?;
        let method = match one(method)? {
            "trust" => Method::Trust,
            "reject" => Method::Reject,
            "scram-sha-256" => Method::ScramSha256,
            "md5" => Method::Md5,
            "cert" => Method::Certificate,
            other => {
                return Err(format!(
                    "the method {other:?} is not supported; there are trust, reject, scram-sha-256, md5 and cert"
                ));
            }
        };
        let mut certificate = match method {
            Method::Certificate => ClientCertificate::NamesTheRole,
            _ => ClientCertificate::NotAsked,
        };
        for option in options {
            certificate = match one(option)? {
                "clientcert=verify-ca" if method != Method::Certificate => ClientCertificate::Signed,
                "clientcert=verify-full" => ClientCertificate::NamesTheRole,
                other => return Err(format!("the option {other:?} is not supported here")),
            };
        }
        if certificate > ClientCertificate::NotAsked && encryption != Encryption::Needed {
            return Err("client certificates come with hostssl only".into());
        }
        Ok(Self {
            encryption,
            databases: databases.iter().map(database_name).collect::<Result<_, _>>()?,
            users: users.iter().map(user_name).collect(),
            addresses,
            method,
            certificate,
        })
    }

    fn matches(&self, attempt: &Attempt<'_>) -> bool {
        let encryption = match self.encryption {
            Encryption::Any => true,
            Encryption::Needed => attempt.encrypted,
            Encryption::Absent => !attempt.encrypted,
        };
        encryption
            && self.addresses.contain(attempt.from)
            && self.databases.iter().any(|name| match name {
                Name::All => true,
                Name::SameUser => attempt.database == attempt.user,
                Name::SameRole => attempt.roles.contains(attempt.database),
                Name::In(name) | Name::Exactly(name) => name == attempt.database,
            })
            && self.users.iter().any(|name| match name {
                Name::All => true,
                Name::In(role) => attempt.roles.contains(role),
                Name::Exactly(name) => name == attempt.user,
                Name::SameUser | Name::SameRole => false,
            })
    }
}

impl Addresses {
    fn contain(self, address: IpAddr) -> bool {
        let Self::Network(network, bits) = self else {
            return true;
        };
        match (network, address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => (n.to_bits() ^ a.to_bits()).leading_zeros() >= u32::from(bits),
            (IpAddr::V6(n), IpAddr::V6(a)) => (n.to_bits() ^ a.to_bits()).leading_zeros() >= u32::from(bits),
            _ => false,
        }
    }
}

/// `all`, `address/bits`, or an address followed by a mask; the fields behind it.
fn parse_addresses<'a>(text: &str, rest: &'a [Vec<Token>]) -> Result<(Addresses, &'a [Vec<Token>]), String> {
    if text == "all" {
        return Ok((Addresses::All, rest));
    }
    let address = |text: &str| {
        IpAddr::from_str(text)
            .map_err(|_| format!("{text:?} is no address; host names are not looked up, write addresses or all"))
    };
    if let Some((network, bits)) = text.split_once('/') {
        let network = address(network)?;
        let longest = if network.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse().ok().filter(|bits| *bits <= longest);
        let bits = bits.ok_or_else(|| format!("the number of bits in {text:?} is not between 0 and {longest}"))?;
        return Ok((Addresses::Network(network, bits), rest));
    }
    let network = address(text)?;
    let (mask, rest) = rest
        .split_first()
        .ok_or_else(|| format!("{text:?} needs the number of its bits, such as {text}/32"))?;
    let mask = address(one(mask)?).map_err(|_| format!("{text:?} needs the number of its bits, such as {text}/32"))?;
    let (ones, whole) = match (network, mask) {
        (IpAddr::V4(_), IpAddr::V4(m)) => (m.to_bits().leading_ones(), m.to_bits().count_ones()),
        (IpAddr::V6(_), IpAddr::V6(m)) => (m.to_bits().leading_ones(), m.to_bits().count_ones()),
        _ => return Err(format!("{text:?} and its mask are of different kinds")),
    };
    if ones != whole {
        return Err(format!("the mask of {text:?} has a gap"));
    }
    Ok((Addresses::Network(network, ones as u8), rest))
}

/// A word, and whether it was quoted: then it is a name, whatever it says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    quoted: bool,
}

fn one(field: &[Token]) -> Result<&str, String> {
    match field {
        [token] => Ok(&token.text),
        _ => Err("a list where one word is wanted".into()),
    }
}

fn database_name(token: &Token) -> Result<Name, String> {
    Ok(match token.text.as_str() {
        "all" if !token.quoted => Name::All,
        "sameuser" if !token.quoted => Name::SameUser,
        "samerole" | "samegroup" if !token.quoted => Name::SameRole,
        text if text.starts_with('@') && !token.quoted => return Err("lists in files are not supported".into()),
        text => Name::Exactly(text.into()),
    })
}

fn user_name(token: &Token) -> Name {
    match token.text.strip_prefix('+') {
        Some(role) if !token.quoted => Name::In(role.into()),
        _ if token.text == "all" && !token.quoted => Name::All,
        _ => Name::Exactly(token.text.clone()),
    }
}

/// Words between white space, lists of them with commas, `"quoted"` where they have either in them; `#` ends the line.
fn fields(line: &str) -> Result<Vec<Vec<Token>>, String> {
    let mut fields: Vec<Vec<Token>> = Vec::new();
    let (mut continues, mut characters) = (false, line.chars().peekable());
    while let Some(first) = characters.peek().copied() {
        match first {
            '#' => break,
            ',' => {
                characters.next();
                continues = !fields.is_empty();
            }
            c if c.is_whitespace() => {
                characters.next();
            }
            _ => {
                let token = token(&mut characters)?;
                match fields.last_mut().filter(|_| continues) {
                    Some(field) => field.push(token),
                    None => fields.push(vec![token]),
                }
                continues = false;
            }
        }
    }
    Ok(fields)
}

fn token(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, String> {
    let mut token = Token {
        text: String::new(),
        quoted: false,
    };
    let mut inside = false;
    while let Some(c) = characters.peek().copied() {
        match c {
            '"' => {
                inside = !inside;
                token.quoted = true;
            }
            c if !inside && (c.is_whitespace() || c == ',' || c == '#') => break,
            c => token.text.push(c),
        }
        characters.next();
    }
    if inside {
        return Err("a quotation mark has no end".into());
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(rules: &[&str], user: &str, database: &str, from: &str, encrypted: bool) -> Option<Method> {
        let rules = Rules::parse(rules.iter().copied()).expect("rules");
        let roles = HashSet::from(["writers".to_owned(), user.to_owned()]);
        let attempt = Attempt {
            user,
            database,
            from: from.parse().expect("address"),
            encrypted,
            roles: &roles,
        };
        rules.find(&attempt).map(|rule| rule.method)
    }

    #[test]
    fn the_first_match_decides() {
        let rules = [
            "# comment",
            "",
            "host shop bob 10.1.0.0/16 reject",
            "hostssl all \"all\", +writers 10.0.0.0 255.0.0.0 scram-sha-256 # who else",
            "hostnossl sameuser,\"my db\" all ::/0 trust",
            "host samerole all 192.168.1.1/32 md5",
        ];
        assert_eq!(method(&rules, "bob", "shop", "10.1.2.3", true), Some(Method::Reject));
        assert_eq!(
            method(&rules, "bob", "shop", "10.2.2.3", true),
            Some(Method::ScramSha256),
            "a member of +writers"
        );
        assert_eq!(method(&rules, "bob", "shop", "10.2.2.3", false), None);
        assert_eq!(method(&rules, "eve", "eve", "fe80::1", false), Some(Method::Trust));
        assert_eq!(method(&rules, "eve", "my db", "fe80::1", false), Some(Method::Trust));
        assert_eq!(method(&rules, "eve", "other", "fe80::1", false), None);
        assert_eq!(
            method(&rules, "eve", "writers", "192.168.1.1", false),
            Some(Method::Md5)
        );
        assert_eq!(method(&rules, "eve", "writers", "192.168.1.2", false), None);
    }

    #[test]
    fn without_rules_only_this_machine_is_trusted() {
        let ask = |from| method(&DEFAULT_RULES, "bob", "shop", from, false);
        assert_eq!(ask("127.0.0.1"), Some(Method::Trust));
        assert_eq!(ask("::1"), Some(Method::Trust));
        assert_eq!(ask("127.0.0.2"), Some(Method::ScramSha256));
        assert_eq!(ask("2001:db8::1"), Some(Method::ScramSha256));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |line: &str| Rules::parse([line]).expect_err(line);
        assert!(wrong("local all all trust").contains("no Unix socket"));
        assert!(wrong("tcp all all all trust").contains("hostssl"));
        assert!(wrong("host all all").contains("wanted: type"));
        assert!(wrong("host all all all").contains("method is missing"));
        assert!(wrong("host all all all ldap").contains("scram-sha-256"));
        assert!(wrong("host all all db.example trust").contains("host names"));
        assert!(wrong("host all all 10.0.0.0/33 trust").contains("between 0 and 32"));
        assert!(wrong("host all all 10.0.0.0 255.0.255.0 trust").contains("gap"));
        assert!(wrong("host all all 10.0.0.0 trust").contains("10.0.0.0/32"));
        assert!(wrong("host all all all cert").contains("hostssl"));
        assert!(wrong("hostssl all all all scram-sha-256 map=x").contains("map=x"));
        assert!(wrong("host \"all all all trust").contains("quotation"));
    }
}
