//! Random statements over the fixture's tables, leaning towards fixed keys so that many can be routed.

/// A table or subquery in FROM, under an alias.
#[derive(Clone)]
struct Source {
    alias: String,
    ints: Vec<&'static str>,
    texts: Vec<&'static str>,
    key: Option<&'static str>,
}

pub struct Generator {
    state: u64,
    aliases: usize,
    depth: usize,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            aliases: 0,
            depth: 0,
        }
    }

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A statement with rows as its result, and whether it changes anything.
    pub fn statement(&mut self) -> (String, bool) {
        self.aliases = 0;
        self.depth = 0;
        match self.below(10) {
            0 => (self.delete(), true),
            1 => (self.update(), true),
            2 => (self.insert(), true),
            3 => (self.insert_select(), true),
            _ => (self.query(&[]), false),
        }
    }

    fn alias(&mut self) -> String {
        self.aliases += 1;
        format!("x{}", self.aliases)
    }

    fn table(&mut self) -> (&'static str, Source) {
        let name = self.pick(&["t", "t", "t", "u", "u", "c", "tx", "two", "loc"]);
        let (ints, texts, key): (&[_], &[_], _) = match name {
            "t" | "two" => (&["k", "n"], &["v"], Some("k")),
            "u" => (&["k", "m"], &["w"], Some("k")),
            "c" => (&["a", "x"], &["b"], Some("a")),
            "tx" => (&["v"], &["k"], None),
            _ => (&["id", "k"], &["s"], None),
        };
        let source = Source {
            alias: name.to_owned(),
            ints: ints.to_vec(),
            texts: texts.to_vec(),
            key,
        };
        (name, source)
    }

    fn source(&mut self, outer: &[Source]) -> (String, Source) {
        if self.one_in(9) && self.depth < 2 {
            let alias = self.alias();
            let lateral = if self.one_in(2) { "LATERAL " } else { "" };
            let (name, mut inner) = self.table();
            let visible = if lateral.is_empty() { Vec::new() } else { outer.to_vec() };
            let condition = self.inner_condition(&inner, &visible);
            inner.alias = alias.clone();
            return (
                format!("{lateral}(SELECT * FROM {name} WHERE {condition}) {alias}"),
                inner,
            );
        }
        let (name, mut source) = self.table();
        if self.one_in(4) && !outer.iter().any(|s| s.alias == name) {
            return (name.to_owned(), source);
        }
        source.alias = self.alias();
        (format!("{name} {}{}", self.pick(&["", "AS "]), source.alias), source)
    }

    fn inner_condition(&mut self, inner: &Source, outer: &[Source]) -> String {
        let mut all = outer.to_vec();
        all.push(inner.clone());
        self.depth += 1;
        let condition = self.predicate(&all, 2);
        self.depth -= 1;
        condition
    }

    fn from(&mut self, outer: &[Source]) -> (String, Vec<Source>) {
        let (mut text, first) = self.source(outer);
        let mut sources = vec![first];
        for _ in 0..self.pick(&[0, 0, 1, 1, 1, 2]) {
            let mut visible = outer.to_vec();
            visible.extend(sources.iter().cloned());
            let (joined, source) = self.source(&visible);
            sources.push(source);
            visible.push(sources[sources.len() - 1].clone());
            text = match self.below(9) {
                0 => format!("{text} CROSS JOIN {joined}"),
                1 => format!("{text} JOIN {joined} USING (k)"),
                2 => format!(
                    "{text} {} JOIN {joined} USING (k)",
                    self.pick(&["LEFT", "RIGHT", "FULL"])
                ),
                3 => format!("{text} NATURAL {}JOIN {joined}", self.pick(&["", "LEFT ", "RIGHT "])),
                4 | 5 => format!("{text} LEFT JOIN {joined} ON {}", self.on(&sources)),
                6 => format!("{text} RIGHT JOIN {joined} ON {}", self.on(&sources)),
                7 => format!("{text} FULL JOIN {joined} ON {}", self.equality(&sources)),
                _ => format!("{text} JOIN {joined} ON {}", self.on(&sources)),
            };
        }
        if self.one_in(6) {
            let (joined, source) = self.source(&sources);
            sources.push(source);
            text = format!("{text}, {joined}");
        }
        (text, sources)
    }

    fn on(&mut self, sources: &[Source]) -> String {
        match self.below(3) {
            0 => self.predicate(sources, 2),
            1 => self.equality(sources),
            _ => format!("{} AND {}", self.equality(sources), self.atom(sources)),
        }
    }

    fn equality(&mut self, sources: &[Source]) -> String {
        let last = &sources[sources.len() - 1];
        let first = &sources[self.below(sources.len())];
        let column =
            |g: &mut Self, s: &Source| format!("{}.{}", s.alias, s.key.unwrap_or(s.ints[g.below(s.ints.len())]));
        format!("{} = {}", column(self, first), column(self, last))
    }

    fn query(&mut self, outer: &[Source]) -> String {
        self.depth += 1;
        let (from, sources) = self.from(outer);
        let mut visible = outer.to_vec();
        visible.extend(sources.iter().cloned());
        let condition = self.fixing(&sources, &visible);
        let list = match self.below(6) {
            0 => "count(*)".to_owned(),
            1 => format!("count(*), max({})", self.int(&sources)),
            2 if self.depth < 2 => {
                let inner = self.scalar_query(&visible);
                format!("{}, {inner}", self.int(&sources))
            }
            3 => format!("{0}.*, {0}.{1}", sources[0].alias, sources[0].ints[0]),
            _ => "*".to_owned(),
        };
        self.depth -= 1;
        let query = format!("SELECT {list} FROM {from} WHERE {condition}");
        match self.below(12) {
            0 if self.depth == 0 => format!("{query} UNION ALL {}", query.replace(" AND ", " OR ")),
            1 if self.depth == 0 => format!("WITH w AS ({query}) SELECT * FROM w"),
            _ => query,
        }
    }

    /// A WHERE that mostly fixes the key of each source.
    fn fixing(&mut self, sources: &[Source], visible: &[Source]) -> String {
        let mut parts = Vec::new();
        let (shard, loose) = (self.below(3), self.one_in(8));
        for source in sources {
            let Some(key) = source.key else { continue };
            if loose || self.one_in(5) {
                continue;
            }
            let value = [[0, 1, 2], [3, 5, 6], [7, 8, 9]][shard][self.below(3)];
            let name = format!("{}.{key}", source.alias);
            parts.push(match self.below(5) {
                0 => format!("{name} IN ({value}, {value})"),
                1 => format!("{value} = {name}"),
                2 => format!("({name} = {value} OR {name} = {value})"),
                _ => format!("{name} = {}", self.constant(value)),
            });
        }
        for _ in 0..self.below(3) {
            parts.push(match self.one_in(3) && sources.len() > 1 {
                true => self.equality(sources),
                false => self.predicate(visible, 2),
            });
        }
        for i in (1..parts.len()).rev() {
            let j = self.below(i + 1);
            parts.swap(i, j);
        }
        if parts.is_empty() {
            "true".into()
        } else {
            parts.join(" AND ")
        }
    }

    fn scalar_query(&mut self, outer: &[Source]) -> String {
        let (name, inner) = self.table();
        let alias = self.alias();
        let inner = Source {
            alias: alias.clone(),
            ..inner
        };
        let condition = self.inner_condition(&inner, outer);
        format!("(SELECT count(*) FROM {name} {alias} WHERE {condition})")
    }

    fn constant(&mut self, value: usize) -> String {
        match self.below(8) {
            0 => format!("'{value}'"),
            1 => format!("{value}::bigint"),
            2 => format!("int '{value}'"),
            3 => format!("({value})"),
            4 => format!("CAST('{value}' AS int)"),
            5 => format!("+{value}"),
            _ => value.to_string(),
        }
    }

    fn int(&mut self, sources: &[Source]) -> String {
        let source = &sources[self.below(sources.len())];
        let column = match source.key {
            Some(key) if self.one_in(2) => key,
            _ => source.ints[self.below(source.ints.len())],
        };
        match self.one_in(6) {
            true => column.to_owned(),
            false => format!("{}.{column}", source.alias),
        }
    }

    fn text(&mut self, sources: &[Source]) -> String {
        let source = &sources[self.below(sources.len())];
        format!("{}.{}", source.alias, source.texts[self.below(source.texts.len())])
    }

    /// Parentheses are left out now and then: precedence is PostgreSQL's to say.
    fn predicate(&mut self, sources: &[Source], depth: usize) -> String {
        if depth == 0 || self.one_in(3) {
            return self.atom(sources);
        }
        let (left, right) = (self.predicate(sources, depth - 1), self.predicate(sources, depth - 1));
        match self.below(9) {
            0..=2 => format!("{left} AND {right}"),
            3 => format!("{left} OR {right}"),
            4 => format!("({left} OR {right})"),
            5 => format!("NOT {left}"),
            6 => format!(
                "({left}) IS {}",
                self.pick(&["TRUE", "NOT TRUE", "FALSE", "UNKNOWN", "NOT UNKNOWN"])
            ),
            7 => format!("CASE WHEN {left} THEN {right} ELSE {left} END"),
            _ => format!("({left} AND {right})"),
        }
    }

    fn atom(&mut self, sources: &[Source]) -> String {
        let (a, b) = (self.int(sources), self.int(sources));
        let value = self.below(10);
        let constant = self.constant(value);
        let op = self.pick(&["=", "=", "=", "<", "<=", ">", ">=", "<>"]);
        match self.below(16) {
            0 | 1 => format!("{a} = {b}"),
            2 => format!("{constant} {op} {a}"),
            3 => format!("{a} IN ({value}, {}, NULL)", self.below(10)),
            4 => format!("{a} BETWEEN {value} AND {}", self.below(10)),
            5 => format!("{a} IS {}NULL", self.pick(&["", "NOT "])),
            6 => format!(
                "{a} IS {}DISTINCT FROM {}",
                self.pick(&["", "NOT "]),
                self.pick(&["NULL", "5", "1"])
            ),
            7 => format!(
                "{a} = ANY ({})",
                self.pick(&["ARRAY[1, 2]", "'{3,4}'", "ARRAY[5, NULL]", "'{}'"])
            ),
            8 => format!("({a}, {b}) {op} ({value}, {})", self.below(10)),
            9 => format!(
                "{} {op} {}",
                self.text(sources),
                self.pick(&["'a'", "'h'", "'5'", "NULL", "E'\\x61'", "$$q$$"])
            ),
            10 => format!(
                "{a} {op} {}",
                self.pick(&["5.0", "5.5", "2 + 3", "NULL", "-1", "5::numeric", "1e0"])
            ),
            11 if self.depth < 3 => {
                let query = self.scalar_query(sources);
                format!("{query} {op} {}", self.below(3))
            }
            12 if self.depth < 3 => {
                let query = self.scalar_query(sources).replacen("count(*)", "1", 1);
                format!("EXISTS {query}")
            }
            13 => format!("{} = {}", self.text(sources), self.text(sources)),
            _ => format!("{a} {op} {constant}"),
        }
    }

    fn delete(&mut self) -> String {
        let (name, source) = self.table();
        let (using, sources) = self.second(&source, "USING");
        let condition = self.fixing(&sources, &sources);
        format!(
            "DELETE FROM {name}{using} WHERE {condition} RETURNING {}.*",
            source.alias
        )
    }

    fn second(&mut self, first: &Source, word: &str) -> (String, Vec<Source>) {
        if self.one_in(2) {
            return (String::new(), vec![first.clone()]);
        }
        let (text, second) = self.source(std::slice::from_ref(first));
        (format!(" {word} {text}"), vec![first.clone(), second])
    }

    fn update(&mut self) -> String {
        let (name, source) = self.table();
        let (from, sources) = self.second(&source, "FROM");
        let condition = self.fixing(&sources, &sources);
        let column = source.ints[self.below(source.ints.len())];
        let value = match self.below(3) {
            0 => self.below(10).to_string(),
            1 => format!("{}.{column}", source.alias),
            _ => format!("{}.{}", source.alias, source.ints[0]),
        };
        format!(
            "UPDATE {name} SET {column} = {value}{from} WHERE {condition} RETURNING {}.*",
            source.alias
        )
    }

    fn insert(&mut self) -> String {
        let (name, columns) = self.pick(&[
            ("t", "n, k, v"),
            ("t", "k"),
            ("two", "k, n"),
            ("c", "b, a"),
            ("tx", "k, v"),
            ("u", ""),
        ]);
        let row = |g: &mut Self| {
            let (a, b) = (g.below(10), g.below(10));
            let word = g.pick(&["'a'", "'h'", "'hz'", "'z'", "E'q\\n'"]);
            let constant = g.constant(a);
            match (name, columns) {
                ("t", "k") => format!("({constant})"),
                ("t", _) => format!("({b}, {constant}, {word})"),
                ("c", _) => format!("({word}, {constant})"),
                ("tx", _) => format!("({word}, {constant})"),
                ("u", _) => format!("({constant}, {word}, {b})"),
                _ => format!("({constant}, {b})"),
            }
        };
        let rows: Vec<_> = (0..1 + self.below(4)).map(|_| row(self)).collect();
        let list = if columns.is_empty() {
            String::new()
        } else {
            format!(" ({columns})")
        };
        format!("INSERT INTO {name}{list} VALUES {} RETURNING {name}.*", rows.join(", "))
    }

    fn insert_select(&mut self) -> String {
        let (name, columns) = self.pick(&[("t", "k, n"), ("u", "k, m"), ("c", "a, x"), ("loc", "id, k")]);
        let (from, sources) = self.from(&[]);
        let condition = self.fixing(&sources, &sources);
        let (a, b) = (self.int(&sources), self.int(&sources));
        format!("INSERT INTO {name} ({columns}) SELECT {a}, {b} FROM {from} WHERE {condition} RETURNING *")
    }
}
