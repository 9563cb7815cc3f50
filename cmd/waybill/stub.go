package main

type (
	migrateCommand     struct{}
	emitCommand        struct{}
	statusCommand      struct{}
	archiveCommand     struct{}
	deadLettersCommand struct{}
)
