// Renders the templates of a Helm chart with Go's own text/template, which Helm uses too: go run etc/chart.go CHART <INPUT
//
// INPUT is a JSON object with Values, Release and Chart. The output is a JSON object: the name of each template, and what
// it renders to. Functions beside Go's own are those below, which the templates of deploy/helm/ use; each does what
// Helm's function of that name does. A template that uses another one fails here.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"text/template"
)

type object = map[string]interface{}

type files struct{ folder string }

func (f files) Get(name string) string {
	content, err := os.ReadFile(filepath.Join(f.folder, name))
	if err != nil {
		return "" // as Helm has it
	}
	return string(content)
}

func indent(spaces int, text string) string {
	pad := strings.Repeat(" ", spaces)
	return pad + strings.ReplaceAll(text, "\n", "\n"+pad)
}

func empty(value interface{}) bool {
	truth, ok := template.IsTrue(value)
	return !ok || !truth
}

func merge(into, over object) object {
	for key, value := range over {
		below, isObject := value.(object)
		old, wasObject := into[key].(object)
		if isObject && wasObject {
			into[key] = merge(old, below)
		} else {
			into[key] = value
		}
	}
	return into
}

var plain = regexp.MustCompile(`^([A-Za-z/][A-Za-z0-9/._-]*( [A-Za-z0-9/._-]+)*|[0-9]+(m|Mi|Gi))$`)
var words = regexp.MustCompile(`^(?i:true|false|yes|no|on|off|null|y|n)$`)

// A value as YAML in block style, members in order; a text that could be read as something else is quoted.
func yaml(value interface{}, spaces int) string {
	pad := "\n" + strings.Repeat(" ", spaces)
	switch known := value.(type) {
	case object:
		names := make([]string, 0, len(known))
		for name := range known {
			names = append(names, name)
		}
		sort.Strings(names)
		found := ""
		for _, name := range names {
			found += pad + scalar(name) + ":" + below(known[name], spaces+2, spaces)
		}
		return found
	case []interface{}:
		found := ""
		for _, each := range known {
			found += pad + "-" + strings.Replace(below(each, spaces+2, spaces+2), "\n"+strings.Repeat(" ", spaces+2), " ", 1)
		}
		return found
	}
	return " " + scalar(value)
}

func below(value interface{}, ofObject, ofList int) string {
	switch known := value.(type) {
	case object:
		if len(known) == 0 {
			return " {}"
		}
		return yaml(value, ofObject)
	case []interface{}:
		if len(known) == 0 {
			return " []"
		}
		return yaml(value, ofList)
	}
	return " " + scalar(value)
}

func scalar(value interface{}) string {
	if text, ok := value.(string); ok && plain.MatchString(text) && !words.MatchString(text) {
		return text
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		log.Fatal(err)
	}
	return string(encoded)
}

func main() {
	log.SetFlags(0)
	folder := os.Args[1]
	var input object
	if err := json.NewDecoder(os.Stdin).Decode(&input); err != nil {
		log.Fatal(err)
	}
	input["Files"] = files{folder}
	set := template.New("chart").Option("missingkey=zero")
	set.Funcs(template.FuncMap{
		"include": func(name string, data interface{}) (string, error) {
			var found bytes.Buffer
			err := set.ExecuteTemplate(&found, name, data)
			return found.String(), err
		},
		"contains": func(part, whole string) bool { return strings.Contains(whole, part) },
		"default": func(other, value interface{}) interface{} {
			if empty(value) {
				return other
			}
			return value
		},
		"dict": func(pairs ...interface{}) object {
			found := object{}
			for i := 0; i+1 < len(pairs); i += 2 {
				found[fmt.Sprint(pairs[i])] = pairs[i+1]
			}
			return found
		},
		"dig": func(arguments ...interface{}) interface{} {
			last := len(arguments) - 1
			value := arguments[last]
			for _, name := range arguments[:last-1] {
				members, _ := value.(object)
				below, ok := members[fmt.Sprint(name)]
				if !ok {
					return arguments[last-1]
				}
				value = below
			}
			return value
		},
		"fail": func(message string) (string, error) { return "", errors.New(message) },
		"int": func(value interface{}) int {
			number, _ := value.(float64) // as JSON has all numbers
			return int(number)
		},
		"list":           func(each ...interface{}) []interface{} { return each },
		"mergeOverwrite": merge,
		"nindent":        func(spaces int, text string) string { return "\n" + indent(spaces, text) },
		"quote":          func(value interface{}) string { return fmt.Sprintf("%q", fmt.Sprint(value)) },
		"sha256sum":      func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) },
		"trimSuffix":     func(end, text string) string { return strings.TrimSuffix(text, end) },
		"trunc": func(most int, text string) string {
			if len(text) > most {
				return text[:most]
			}
			return text
		},
		"upper": strings.ToUpper,
		"fromJson": func(text string) (object, error) {
			found := object{}
			return found, json.Unmarshal([]byte(text), &found)
		},
		"toPrettyJson": func(value interface{}) (string, error) {
			found, err := json.MarshalIndent(value, "", "  ")
			return string(found), err
		},
		"toYaml": func(value interface{}) string { return strings.TrimPrefix(yaml(value, 0), "\n") },
	})
	names, err := filepath.Glob(filepath.Join(folder, "templates", "*"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			log.Fatal(err)
		}
		template.Must(set.New(filepath.Base(name)).Parse(string(content)))
	}
	rendered := map[string]string{}
	for _, name := range names {
		if strings.HasPrefix(filepath.Base(name), "_") {
			continue
		}
		var found bytes.Buffer
		if err := set.ExecuteTemplate(&found, filepath.Base(name), input); err != nil {
			log.Fatal(err)
		}
		rendered[filepath.Base(name)] = found.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(rendered); err != nil {
		log.Fatal(err)
	}
}
