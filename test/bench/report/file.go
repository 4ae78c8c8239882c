package report

import (
	"encoding/json"
	"fmt"
	"os"
)

// Save writes results as JSON. It replaces the file at once: a run may be killed at any time.
func Save(file string, results any) error {
	body, err := json.MarshalIndent(results, "", " ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(file+".new", append(body, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// Open reads what Save has written.
func Open(file string, results any) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	if err := json.Unmarshal(body, results); err != nil {
		return fmt.Errorf("read results of %s: %w", file, err)
	}
	return nil
}
