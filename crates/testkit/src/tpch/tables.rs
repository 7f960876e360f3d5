//! TPC-H's tables: what they look like, where they lie on the shards, and their rows.

use crate::Result;
use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use futures::SinkExt;
use std::fmt::{Display, Write};
use tokio_postgres::Client;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator, PartSuppGenerator,
    RegionGenerator, SupplierGenerator,
};

/// How pgherd's tables lie: always by their primary key over three shards, nothing on several of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Layout {
    /// lineitem lies beside its orders, partsupp beside its parts
    Colocated,
    /// no two tables have the same bounds
    Scattered,
}

impl Layout {
    /// What the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Colocated => "pgherd, colocated",
            Self::Scattered => "pgherd, scattered",
        }
    }
}

/// One table: its name, columns, the shard key with the values it has per unit of scale (or in all, where the scale does not
/// matter), and what makes its bounds differ from those of others where nothing is to be colocated.
struct Table {
    name: &'static str,
    columns: &'static str,
    primary_key: &'static str,
    key: &'static str,
    keys: f64,
    scaled: bool,
    shift: i64,
}

const TABLES: [Table; 8] = [
    Table {
        name: "region",
        columns: "r_regionkey int NOT NULL, r_name char(25) NOT NULL, r_comment varchar(152)",
        primary_key: "r_regionkey",
        key: "r_regionkey",
        keys: 5.0,
        scaled: false,
        shift: 0,
    },
    Table {
        name: "nation",
        columns: "n_nationkey int NOT NULL, n_name char(25) NOT NULL, n_regionkey int NOT NULL, n_comment varchar(152)",
        primary_key: "n_nationkey",
        key: "n_nationkey",
        keys: 25.0,
        scaled: false,
        shift: 1,
    },
    Table {
        name: "supplier",
        columns: "s_suppkey int NOT NULL, s_name char(25) NOT NULL, s_address varchar(40) NOT NULL, \
                  s_nationkey int NOT NULL, s_phone char(15) NOT NULL, s_acctbal numeric(15,2) NOT NULL, \
                  s_comment varchar(101) NOT NULL",
        primary_key: "s_suppkey",
        key: "s_suppkey",
        keys: 10_000.0,
        scaled: true,
        shift: 2,
    },
    Table {
        name: "customer",
        columns: "c_custkey int NOT NULL, c_name varchar(25) NOT NULL, c_address varchar(40) NOT NULL, \
                  c_nationkey int NOT NULL, c_phone char(15) NOT NULL, c_acctbal numeric(15,2) NOT NULL, \
                  c_mktsegment char(10) NOT NULL, c_comment varchar(117) NOT NULL",
        primary_key: "c_custkey",
        key: "c_custkey",
        keys: 150_000.0,
        scaled: true,
        shift: 3,
    },
    Table {
        name: "part",
        columns: "p_partkey int NOT NULL, p_name varchar(55) NOT NULL, p_mfgr char(25) NOT NULL, \
                  p_brand char(10) NOT NULL, p_type varchar(25) NOT NULL, p_size int NOT NULL, \
                  p_container char(10) NOT NULL, p_retailprice numeric(15,2) NOT NULL, p_comment varchar(23) NOT NULL",
        primary_key: "p_partkey",
        key: "p_partkey",
        keys: 200_000.0,
        scaled: true,
        shift: 4,
    },
    Table {
        name: "partsupp",
        columns: "ps_partkey int NOT NULL, ps_suppkey int NOT NULL, ps_availqty int NOT NULL, \
                  ps_supplycost numeric(15,2) NOT NULL, ps_comment varchar(199) NOT NULL",
        primary_key: "ps_partkey, ps_suppkey",
        key: "ps_partkey",
        keys: 200_000.0,
        scaled: true,
        shift: 5,
    },
    Table {
        name: "orders",
        columns: "o_orderkey bigint NOT NULL, o_custkey int NOT NULL, o_orderstatus char(1) NOT NULL, \
                  o_totalprice numeric(15,2) NOT NULL, o_orderdate date NOT NULL, o_orderpriority char(15) NOT NULL, \
                  o_clerk char(15) NOT NULL, o_shippriority int NOT NULL, o_comment varchar(79) NOT NULL",
        primary_key: "o_orderkey",
        key: "o_orderkey",
        keys: 6_000_000.0,
        scaled: true,
        shift: 6,
    },
    Table {
        name: "lineitem",
        columns: "l_orderkey bigint NOT NULL, l_partkey int NOT NULL, l_suppkey int NOT NULL, l_linenumber int NOT NULL, \
                  l_quantity numeric(15,2) NOT NULL, l_extendedprice numeric(15,2) NOT NULL, \
                  l_discount numeric(15,2) NOT NULL, l_tax numeric(15,2) NOT NULL, l_returnflag char(1) NOT NULL, \
                  l_linestatus char(1) NOT NULL, l_shipdate date NOT NULL, l_commitdate date NOT NULL, \
                  l_receiptdate date NOT NULL, l_shipinstruct char(25) NOT NULL, l_shipmode char(10) NOT NULL, \
                  l_comment varchar(44) NOT NULL",
        primary_key: "l_orderkey, l_linenumber",
        key: "l_orderkey",
        keys: 6_000_000.0,
        scaled: true,
        shift: 7,
    },
];

/// Indexes on the columns that refer to other tables, which the specification allows, on every side.
const INDEXES: [(&str, &str); 6] = [
    ("supplier", "s_nationkey"),
    ("customer", "c_nationkey"),
    ("partsupp", "ps_suppkey"),
    ("orders", "o_custkey"),
    ("lineitem", "l_partkey, l_suppkey"),
    ("lineitem", "l_suppkey"),
];

impl Table {
    /// Two bounds, so that three shards have about a third of the rows each.
    fn bounds(&self, layout: Layout, scale: f64) -> String {
        let keys = if self.scaled { self.keys * scale } else { self.keys };
        let shift = match layout {
            Layout::Colocated => 0,
            Layout::Scattered => self.shift,
        };
        let bound = |part: f64| (keys * part / 3.0) as i64 + 1 + shift;
        format!("int {0},{1}; bigint {0},{1}", bound(1.0), bound(2.0))
    }
}

/// Makes the tables and fills them through this connection. `None` makes them for plain PostgreSQL.
pub(super) async fn fill(client: &Client, layout: Option<Layout>, scale: f64) -> Result<()> {
    for table in &TABLES {
        let partition = match layout {
            Some(layout) => {
                let bounds = table.bounds(layout, scale);
                client
                    .batch_execute(&format!("SET pgherd.initial_bounds = '{bounds}'"))
                    .await?;
                format!(" PARTITION BY RANGE ({})", table.key)
            }
            None => String::new(),
        };
        let (name, columns, key) = (table.name, table.columns, table.primary_key);
        client
            .batch_execute(&format!(
                "CREATE TABLE {name} ({columns}, PRIMARY KEY ({key})){partition}"
            ))
            .await?;
    }
    copy(client, "region", RegionGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "nation", NationGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "supplier", SupplierGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "customer", CustomerGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "part", PartGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "partsupp", PartSuppGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "orders", OrderGenerator::new(scale, 1, 1).iter()).await?;
    copy(client, "lineitem", LineItemGenerator::new(scale, 1, 1).iter()).await?;
    for (table, columns) in INDEXES {
        client
            .batch_execute(&format!("CREATE INDEX ON {table} ({columns})"))
            .await?;
    }
    Ok(())
}

/// COPY's buffer is sent when it has this many bytes.
const CHUNK: usize = 256 * 1024;

/// Fills a table with rows in TPC-H's own format, which ends each value with a bar.
async fn copy<R: Display>(client: &Client, table: &str, rows: impl Iterator<Item = R>) -> Result<()> {
    let sql = format!("COPY {table} FROM STDIN (FORMAT text, DELIMITER '|')");
    let mut sink = std::pin::pin!(client.copy_in::<_, Bytes>(&sql).await?);
    let mut chunk = BytesMut::with_capacity(CHUNK + 1024);
    for row in rows {
        let start = chunk.len();
        // Writing into memory does not fail.
        let _ = write!(chunk, "{row}");
        if chunk.len() > start {
            chunk.truncate(chunk.len() - 1);
        }
        chunk.extend_from_slice(b"\n");
        if chunk.len() >= CHUNK {
            sink.send(chunk.split().freeze()).await?;
        }
    }
    sink.send(chunk.freeze()).await?;
    sink.finish().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colocated_tables_have_equal_bounds_and_scattered_ones_have_not() {
        let bounds = |name: &str, layout| {
            let table = TABLES.iter().find(|table| table.name == name);
            table.expect("a table").bounds(layout, 1.0)
        };
        assert_eq!(
            bounds("orders", Layout::Colocated),
            bounds("lineitem", Layout::Colocated)
        );
        assert_eq!(bounds("part", Layout::Colocated), bounds("partsupp", Layout::Colocated));
        let scattered: std::collections::HashSet<_> = TABLES
            .iter()
            .map(|table| table.bounds(Layout::Scattered, 1.0))
            .collect();
        assert_eq!(scattered.len(), TABLES.len());
    }
}
