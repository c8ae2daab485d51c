//! The functions that SQL has beyond the engine's own: here those for addresses, below those of KQL.

mod aggregates;
mod kql;
mod make_series;
mod series;

use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, StringArray, UInt64Array};
use deltalake::arrow::datatypes::{DataType, Int64Type};
use deltalake::datafusion::common::Result;
use deltalake::datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use deltalake::datafusion::prelude::SessionContext;
use deltalake::datafusion::scalar::ScalarValue;
use spanwatch_common::net::Address;
use spanwatch_kql::Compat;

/// Makes the functions known to `context`.
pub(crate) fn register(context: &SessionContext, compat: &Compat) {
    let addresses = [ip_text(), ip_bytes(), mac_text(), unsigned()];
    for function in addresses.into_iter().chain(kql::functions()).chain(series::functions(compat)) {
        context.register_udf(function);
    }
    for aggregate in aggregates::aggregates().into_iter().chain([make_series::aggregate()]) {
        context.register_udaf(aggregate);
    }
}

/// `ip_text(bytes)`: the address in 16 bytes as text; NULL for anything else.
pub(crate) fn ip_text() -> ScalarUDF {
    function("ip_text", DataType::Binary, DataType::Utf8, |input| {
        let texts = input.as_binary::<i32>().iter().map(|bytes| {
            let bytes: [u8; 16] = bytes?.try_into().ok()?;
            Some(Address(u128::from_be_bytes(bytes)).to_string())
        });
        Arc::new(texts.collect::<StringArray>())
    })
}

/// `ip_bytes(text)`: the 16 bytes of an IPv4 or IPv6 address, in which equal addresses are equal and ranges are in order;
/// NULL when the text is no address.
pub(crate) fn ip_bytes() -> ScalarUDF {
    function("ip_bytes", DataType::Utf8, DataType::Binary, |input| {
        let bytes = input.as_string::<i32>().iter().map(|text| text?.trim().parse::<Address>().ok().map(|ip| ip.0.to_be_bytes()));
        Arc::new(bytes.collect::<BinaryArray>())
    })
}

/// `mac_text(number)`: the lower 48 bits as `aa:bb:cc:dd:ee:ff`.
pub(crate) fn mac_text() -> ScalarUDF {
    function("mac_text", DataType::Int64, DataType::Utf8, |input| {
        let texts = input.as_primitive::<Int64Type>().iter().map(|number| {
            let [_, _, a, b, c, d, e, f] = number?.to_be_bytes();
            Some(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
        });
        Arc::new(texts.collect::<StringArray>())
    })
}

/// `unsigned(number)`: what a 64-bit word means without a sign.
pub(crate) fn unsigned() -> ScalarUDF {
    function("unsigned", DataType::Int64, DataType::UInt64, |input| {
        let words = input.as_primitive::<Int64Type>().iter().map(|number| number.map(i64::cast_unsigned));
        Arc::new(words.collect::<UInt64Array>())
    })
}

/// A function of one argument that depends on nothing else. The engine casts arguments to `from`.
fn function(name: &str, from: DataType, to: DataType, body: fn(&dyn Array) -> ArrayRef) -> ScalarUDF {
    let apply = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(arguments)?;
        let scalar = arguments.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let result = body(arrays[0].as_ref());
        Ok(if scalar { ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?) } else { ColumnarValue::Array(result) })
    };
    create_udf(name, vec![from], to, Volatility::Immutable, Arc::new(apply))
}
