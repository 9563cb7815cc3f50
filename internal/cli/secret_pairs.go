package cli

import (
	"reflect"
	"strings"

	"github.com/alecthomas/kong"
)

// pairs reads a map of texts as kong does, unless it is secret: of one of these kong's error would show
// what it could not read, and the variable's whole value. So nothing of it is an error here: what is no
// pair gets the empty name, which the one who uses the map refuses.
func pairs(plain kong.Mapper) kong.MapperFunc {
	return func(ctx *kong.DecodeContext, target reflect.Value) error {
		if !ctx.Value.Tag.Has("secret") {
			return plain.Decode(ctx, target)
		}
		var text string
		if err := ctx.Scan.PopValueInto("pairs", &text); err != nil {
			return err
		}
		if target.IsNil() {
			target.Set(reflect.MakeMap(target.Type()))
		}
		for _, pair := range kong.SplitEscaped(text, ctx.Value.Tag.MapSep) {
			name, value, ok := strings.Cut(pair, "=")
			if !ok {
				name, value = "", pair
			}
			target.SetMapIndex(reflect.ValueOf(name), reflect.ValueOf(value))
		}
		return nil
	}
}

// pairsMapper is the option of kong that makes it use pairs.
func pairsMapper() kong.Option {
	typ := reflect.TypeFor[map[string]string]()
	return kong.TypeMapper(typ, pairs(kong.NewRegistry().RegisterDefaults().ForType(typ)))
}
