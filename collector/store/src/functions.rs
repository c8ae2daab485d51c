//! The functions that SQL has beyond the engine's own: here those for fields of the record, below those of KQL.

mod aggregates;
mod kql;
mod make_series;
mod series;

use std::sync::Arc;

use deltalake::arrow::array::{ArrayRef, AsArray, BinaryArray, StringArray, UInt64Array};
use deltalake::arrow::datatypes::{DataType, Int64Type};
use deltalake::datafusion::common::Result;
use deltalake::datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use deltalake::datafusion::prelude::SessionContext;
use deltalake::datafusion::scalar::ScalarValue;
use spanwatch_common::layer2;
use spanwatch_common::net::Address;
use spanwatch_kql::Compat;

/// Makes the functions known to `context`.
pub(crate) fn register(context: &SessionContext, compat: &Compat) {
    let fields = [ip_text(), ip_bytes(), mac_text(), unsigned(), layer2_name()];
    for function in fields.into_iter().chain(kql::functions()).chain(series::functions(compat)) {
        context.register_udf(function);
    }
    for aggregate in aggregates::aggregates().into_iter().chain([make_series::aggregate()]) {
        context.register_udaf(aggregate);
    }
}

/// `ip_text(bytes)`: the address in 16 bytes as text; NULL for anything else.
pub(crate) fn ip_text() -> ScalarUDF {
    function("ip_text", &[DataType::Binary], DataType::Utf8, |arguments| {
        let texts = arguments[0].as_binary::<i32>().iter().map(|bytes| {
            let bytes: [u8; 16] = bytes?.try_into().ok()?;
            Some(Address(u128::from_be_bytes(bytes)).to_string())
        });
        Arc::new(texts.collect::<StringArray>())
    })
}

/// `ip_bytes(text)`: the 16 bytes of an IPv4 or IPv6 address, in which equal addresses are equal and ranges are in order;
/// NULL when the text is no address.
pub(crate) fn ip_bytes() -> ScalarUDF {
    function("ip_bytes", &[DataType::Utf8], DataType::Binary, |arguments| {
        let bytes =
            arguments[0].as_string::<i32>().iter().map(|text| text?.trim().parse::<Address>().ok().map(|ip| ip.0.to_be_bytes()));
        Arc::new(bytes.collect::<BinaryArray>())
    })
}

/// `mac_text(number)`: the lower 48 bits as `aa:bb:cc:dd:ee:ff`.
pub(crate) fn mac_text() -> ScalarUDF {
    function("mac_text", &[DataType::Int64], DataType::Utf8, |arguments| {
        let texts = arguments[0].as_primitive::<Int64Type>().iter().map(|number| {
            let [_, _, a, b, c, d, e, f] = number?.to_be_bytes();
            Some(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
        });
        Arc::new(texts.collect::<StringArray>())
    })
}

/// `unsigned(number)`: what a 64-bit word means without a sign.
pub(crate) fn unsigned() -> ScalarUDF {
    function("unsigned", &[DataType::Int64], DataType::UInt64, |arguments| {
        let words = arguments[0].as_primitive::<Int64Type>().iter().map(|number| number.map(i64::cast_unsigned));
        Arc::new(words.collect::<UInt64Array>())
    })
}

/// `layer2_name(ethernetType, llcServiceAccessPoints, layer2Instance)`: what the protocol of a layer-2 conversation is called; its number in
/// hexadecimal when it has no name, NULL when it has no number either.
pub(crate) fn layer2_name() -> ScalarUDF {
    function("layer2_name", &[DataType::Int64, DataType::Int64, DataType::Int64], DataType::Utf8, |arguments| {
        let of = |argument: usize| arguments[argument].as_primitive::<Int64Type>().iter().map(|number| number.unwrap_or(0));
        let names = of(0).zip(of(1)).zip(of(2)).map(|((ethernet_type, saps), instance)| {
            let short = |number: i64| u16::try_from(number).unwrap_or(0);
            layer2::label(short(ethernet_type), short(saps), instance.cast_unsigned())
        });
        Arc::new(names.collect::<StringArray>())
    })
}

/// A function that depends on nothing but its arguments. The engine casts them to `from`, and they come in columns of equal length.
fn function(name: &str, from: &[DataType], to: DataType, body: fn(&[ArrayRef]) -> ArrayRef) -> ScalarUDF {
    let apply = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue> {
        let scalar = arguments.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let result = body(&ColumnarValue::values_to_arrays(arguments)?);
        Ok(if scalar { ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?) } else { ColumnarValue::Array(result) })
    };
    create_udf(name, from.to_vec(), to, Volatility::Immutable, Arc::new(apply))
}
