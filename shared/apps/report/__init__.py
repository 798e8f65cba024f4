"""Pages that people read: patients of an inference, parts of a study's report, checklists, model card."""
